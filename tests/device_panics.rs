//! A panic on a device's own thread. It is on record for the whole process, so this test has a
//! process of its own.

use itemlm::ErrorKind;
use itemlm::core::panic::{DeviceGuard, check_device};

#[test]
fn a_panic_of_a_device_belongs_to_the_guards_of_its_time() {
    let before = DeviceGuard::new();
    let thread = std::thread::Builder::new().name("DSU-0-0".into());
    assert!(thread.spawn(|| panic!("the queue died")).unwrap().join().is_err());
    let error = before.check().unwrap_err();
    assert!(error.kind() == ErrorKind::Device && error.to_string().contains("the queue died"), "{error}");
    assert!(before.scope(check_device).is_err());
    let after = DeviceGuard::new();
    assert!(after.check().is_ok() && after.scope(check_device).is_ok());
    assert!(before.run(|| Ok(())).is_err() && after.run(|| Ok(())).is_ok());
}
