//! The block quantisations of GGUF, unpacked to codes, scales and offsets in the host's memory.
//!
//! A number of every format is `scale · (code - zero) + offset`, with a scale (and an offset) for
//! each 16 or 32 numbers of a row. Codes of up to 4 bits are stored in 4, those of 5, 6 and 8 bits
//! in 8. There is no second rounding: [`dequantize`] returns, to the bit, the file's numbers in
//! f32. The formats: ggml/src/ggml-quants.c, `dequantize_row_*`.

use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;

/// A matrix in blocks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blocks {
    /// Bits of a code: 4 or 8.
    pub(crate) bits: usize,
    /// The code that stands for 0.
    pub(crate) zero: u8,
    /// Number of values that share a scale.
    pub(crate) block: usize,
    /// Codes, row-major; an int has its first code in its lowest bits.
    pub(crate) codes: Vec<i32>,
    /// One scale for each block.
    pub(crate) scales: Vec<f32>,
    /// Offsets, one for each scale; or none.
    pub(crate) offsets: Vec<f32>,
}

impl Blocks {
    /// Returns the bits of a code, the code of 0, the number of values with one scale, and whether
    /// there are offsets.
    fn layout(format: GgmlDType) -> Option<(usize, u8, usize, bool)> {
        Some(match format {
            GgmlDType::Q4_0 => (4, 8, 32, false),
            GgmlDType::Q4_1 | GgmlDType::Q4K => (4, 0, 32, true),
            GgmlDType::Q5_0 => (8, 16, 32, false),
            GgmlDType::Q5_1 | GgmlDType::Q5K => (8, 0, 32, true),
            GgmlDType::Q8_0 => (8, 128, 32, false),
            GgmlDType::Q2K => (4, 0, 16, true),
            GgmlDType::Q3K => (4, 4, 16, false),
            GgmlDType::Q6K => (8, 32, 16, false),
            _ => return None,
        })
    }

    /// Returns the bits that a number takes, its share of scale and offset included; 32 for a
    /// format without blocks.
    pub(crate) fn bits_per_number(format: GgmlDType) -> usize {
        Self::layout(format).map_or(32, |(bits, _, block, offsets)| bits + 32 * (1 + usize::from(offsets)) / block)
    }

    /// Returns the number of values.
    pub(crate) fn numbers(&self) -> usize {
        self.scales.len() * self.block
    }

    /// Unpacks whole blocks of `format`; `None` for a format without blocks.
    pub(crate) fn read(format: GgmlDType, bytes: &[u8]) -> Option<Self> {
        use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q8_0};
        let (bits, zero, block, has_offsets) = Self::layout(format)?;
        let numbers = bytes.len() / format.type_size() * format.block_size();
        let mut read = Self {
            bits,
            zero,
            block,
            codes: Vec::with_capacity(numbers * bits / 32),
            scales: Vec::with_capacity(numbers / block),
            offsets: Vec::with_capacity(if has_offsets { numbers / block } else { 0 }),
        };
        let mut codes = Vec::with_capacity(format.block_size());
        for bytes in bytes.chunks_exact(format.type_size()) {
            codes.clear();
            match format {
                Q4_0 | Q5_0 => read.scales.push(half(bytes, 0)),
                Q4_1 | Q5_1 => {
                    read.scales.push(half(bytes, 0));
                    read.offsets.push(half(bytes, 2));
                }
                Q8_0 => {
                    read.scales.push(half(bytes, 0));
                    codes.extend(bytes[2..].iter().map(|code| code ^ 0x80));
                }
                Q2K => read.q2_k(bytes, &mut codes),
                Q3K => read.q3_k(bytes, &mut codes),
                Q4K => read.q4_k(bytes, &mut codes),
                Q5K => read.q5_k(bytes, &mut codes),
                _ => read.q6_k(bytes, &mut codes),
            }
            match format {
                Q4_0 => nibbles(&bytes[2..], &mut codes),
                Q4_1 => nibbles(&bytes[4..], &mut codes),
                Q5_0 => five_bits(&bytes[2..], &mut codes),
                Q5_1 => five_bits(&bytes[4..], &mut codes),
                _ => {}
            }
            read.codes.extend(codes.chunks_exact(32 / bits).map(|codes| {
                codes.iter().rev().fold(0, |int: u32, &code| int.unbounded_shl(bits as u32) | u32::from(code)) as i32
            }));
        }
        Some(read)
    }

    /// Unpacks 256 numbers: sixteen bytes of a 4-bit scale and offset, 64 bytes of 2-bit codes, two
    /// f16.
    fn q2_k(&mut self, bytes: &[u8], codes: &mut Vec<u8>) {
        let (packed, low, scale, offset) = (&bytes[..16], &bytes[16..80], half(bytes, 80), half(bytes, 82));
        self.scales.extend(packed.iter().map(|packed| scale * f32::from(packed & 15)));
        self.offsets.extend(packed.iter().map(|packed| -(offset * f32::from(packed >> 4))));
        for low in low.chunks_exact(32) {
            (0..4).for_each(|quarter| codes.extend(low.iter().map(|low| (low >> (2 * quarter)) & 3)));
        }
    }

    /// Unpacks 256 numbers: 32 bytes of their third bits, 64 of their low 2, twelve of sixteen
    /// 6-bit scales, one f16.
    fn q3_k(&mut self, bytes: &[u8], codes: &mut Vec<u8>) {
        let (high, low, packed, scale) = (&bytes[..32], &bytes[32..96], &bytes[96..108], half(bytes, 108));
        self.scales.extend((0..16).map(|j| {
            let of_block = (packed[j % 8] >> (j / 8 * 4) & 15) | ((packed[8 + j % 4] >> (j / 4 * 2) & 3) << 4);
            scale * (f32::from(of_block) - 32.0)
        }));
        for (half, low) in low.chunks_exact(32).enumerate() {
            for quarter in 0..4 {
                let third = |high: u8| (high >> (4 * half + quarter) & 1) << 2;
                codes.extend(low.iter().zip(high).map(|(low, &high)| ((low >> (2 * quarter)) & 3) | third(high)));
            }
        }
    }

    /// Unpacks 256 numbers: two f16, 12 bytes of eight 6-bit scales and offsets, 128 of codes.
    fn q4_k(&mut self, bytes: &[u8], codes: &mut Vec<u8>) {
        self.six_bit_scales(bytes);
        bytes[16..].chunks_exact(32).for_each(|pairs| nibbles(pairs, codes));
    }

    /// Unpacks 256 numbers: as Q4_K, with 32 bytes of their fifth bits before the codes.
    fn q5_k(&mut self, bytes: &[u8], codes: &mut Vec<u8>) {
        self.six_bit_scales(bytes);
        let (high, low) = (&bytes[16..48], &bytes[48..]);
        low.chunks_exact(32).for_each(|pairs| nibbles(pairs, codes));
        for (at, code) in codes.iter_mut().enumerate() {
            *code |= (high[at % 32] >> (at / 32) & 1) << 4;
        }
    }

    /// Unpacks the scales and offsets of Q4_K and Q5_K: two f16, then eight pairs of 6 bits.
    fn six_bit_scales(&mut self, bytes: &[u8]) {
        let (scale, offset, packed) = (half(bytes, 0), half(bytes, 2), &bytes[4..16]);
        for j in 0..8 {
            let (of_scale, of_offset) = match j {
                0..4 => (packed[j] & 63, packed[j + 4] & 63),
                _ => ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)),
            };
            self.scales.push(scale * f32::from(of_scale));
            self.offsets.push(-(offset * f32::from(of_offset)));
        }
    }

    /// Unpacks 256 numbers: 128 bytes of their low 4 bits, 64 of their high 2, sixteen i8 scales,
    /// one f16.
    fn q6_k(&mut self, bytes: &[u8], codes: &mut Vec<u8>) {
        let (low, high, scale) = (&bytes[..128], &bytes[128..192], half(bytes, 208));
        self.scales.extend(bytes[192..208].iter().map(|&of_block| scale * f32::from(of_block as i8)));
        for (low, high) in low.chunks_exact(64).zip(high.chunks_exact(32)) {
            for quarter in 0..4 {
                let low = low.iter().skip(quarter % 2 * 32);
                let code = |(&low, &high): (&u8, &u8)| {
                    ((low >> (quarter / 2 * 4)) & 15) | (((high >> (quarter * 2)) & 3) << 4)
                };
                codes.extend(low.zip(high).map(code));
            }
        }
    }

    /// Reorders the rows by `order`, which names every row once.
    pub(crate) fn with_rows(self, order: &[usize]) -> Self {
        fn permute_rows<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
            let width = values.len() / order.len();
            order.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
        }
        let (codes, scales) = (permute_rows(&self.codes, order), permute_rows(&self.scales, order));
        Self { codes, scales, offsets: permute_rows(&self.offsets, order), ..self }
    }
}

/// Returns the mask of a code's `bits`.
pub(crate) fn code_mask(bits: usize) -> i32 {
    (1 << bits) - 1
}

/// Computes `scale · (code - zero) + offset` for every number, row-major.
pub(crate) fn dequantize(bits: usize, zero: u8, codes: &[i32], scales: &[f32], offsets: &[f32]) -> Vec<f32> {
    let (per_int, mask, zero) = (32 / bits, code_mask(bits), f32::from(zero));
    let ints = codes.len() / scales.len().max(1);
    let mut values = vec![0.0; codes.len() * per_int];
    let blocks = values.par_chunks_mut(ints * per_int).zip(codes.par_chunks(ints)).with_min_len(256);
    blocks.enumerate().for_each(|(at, (values, codes))| {
        for (values, &int) in values.chunks_exact_mut(per_int).zip(codes) {
            for (j, value) in values.iter_mut().enumerate() {
                *value = scales[at] * (((int >> (j * bits)) & mask) as f32 - zero);
            }
        }
        if let Some(offset) = offsets.get(at) {
            values.iter_mut().for_each(|value| *value += offset);
        }
    });
    values
}

/// Reads an f16 at byte `at`.
fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Appends the low halves of all bytes, then the high ones.
fn nibbles(bytes: &[u8], codes: &mut Vec<u8>) {
    codes.extend(bytes.iter().map(|byte| byte & 15));
    codes.extend(bytes.iter().map(|byte| byte >> 4));
}

/// Appends 32 codes: the first four bytes hold a fifth bit of each.
fn five_bits(bytes: &[u8], codes: &mut Vec<u8>) {
    nibbles(&bytes[4..], codes);
    for (at, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[at / 8] >> (at % 8) & 1) << 4;
    }
}
