//! Messages of burn about a device that ran out of memory.

/// Returns the line of a panic's message that says that a device ran out of memory; `None` where
/// the panic is about something else.
///
/// No allocation fails at the call. cubecl's server notes it and the next read panics with it; wgpu
/// panics on the device's own thread.
pub fn out_of_memory_message(panic: &str) -> Option<&str> {
    const MESSAGES: [&str; 7] = [
        // cubecl-runtime's `IoError::BufferTooBig`: a tensor larger than wgpu's buffers may be, or
        // CUDA's out of memory.
        "can't allocate buffer of size",
        // cubecl-runtime's `LaunchError::OutOfMemory`.
        "An out-of-memory error happened during launch",
        // wgpu's `default_error_handler` of `Error::OutOfMemory`.
        "wgpu error: Out of Memory",
        // wgpu-core's `DeviceError::OutOfMemory`.
        "Not enough memory left.",
        // wgpu-core's `CreateBufferError::MaxBufferSize`.
        "is greater than the maximum buffer size",
        // wgpu-core's `CreateBindGroupError::BufferRangeTooLarge`.
        "exceeds `max_*_buffer_binding_size` limit",
        // cudarc's `DriverError`.
        "CUDA_ERROR_OUT_OF_MEMORY",
    ];
    let line = panic.lines().find(|line| MESSAGES.iter().any(|message| line.contains(message)))?;
    // This message stands inside others; it is enough alone.
    let start = line.find(MESSAGES[0]).unwrap_or(0);
    Some(line[start..].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_own_messages_and_no_others() {
        let buffer = "The server is in an invalid state\nCaused by:\n  [An execution error happened during \
                      profiling\nCaused by:\n  \
                      can't allocate buffer of size: 536870912\n   0: backtrace] (src/a.rs:1)";
        assert_eq!(out_of_memory_message(buffer), Some("can't allocate buffer of size: 536870912"));
        assert_eq!(
            out_of_memory_message("wgpu error: Out of Memory\n (src/b.rs:2)"),
            Some("wgpu error: Out of Memory")
        );
        let too_large = "wgpu error: Validation Error\n\nCaused by:\n    Buffer size 9 is greater than the maximum \
                         buffer size (8)\n";
        assert_eq!(out_of_memory_message(too_large), Some("Buffer size 9 is greater than the maximum buffer size (8)"));
        for message in [
            "wgpu error: Validation Error\n\nCaused by:\n  In Device::create_buffer\n    Buffer size 9 is greater \
             than the maximum buffer size (8)\n",
            "called `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "An out-of-memory error happened during launch\nCaused by:\n  no room",
        ] {
            assert!(out_of_memory_message(message).is_some(), "{message}");
        }
        for other in [
            "wgpu error: Validation Error\n\nCaused by:\n  Shader entry point's workgroup size [1024, 1, 1] is too \
             large",
            "index out of bounds: the len is 3 but the index is 3",
            "couldn't find resource for that handle: memory is gone",
            "The device is lost",
        ] {
            assert_eq!(out_of_memory_message(other), None, "{other}");
        }
    }
}
