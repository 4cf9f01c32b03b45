//! Frozen matrices that stay in the 4- and 8-bit blocks of their GGUF file.
//!
//! Every block format that [`crate::model::open_llm`] reads is `scale · (code - zero) + offset`,
//! with a scale (and an offset) for each 16 or 32 numbers of a row. Codes of 4 bits are kept in 4,
//! those of 5, 6 and 8 bits in 8. Nothing is rounded anew: [`Quantized::unpacked`] is to the bit
//! what the file's numbers are in f32. The formats: ggml/src/ggml-quants.c, `dequantize_row_*`.

use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;

use crate::device::{Concrete, Training};
use crate::kernels::{cast, is, is_cpu_device};
use crate::model::clone_to_device::copied;

/// A frozen `[out, in]` matrix on a device.
#[derive(Module, Debug)]
pub struct Quantized<B: Backend> {
    /// `[out, in · bits / 32]`, i32: a row's codes, each int's first one in its lowest bits.
    codes: Tensor<B, 2, Int>,
    /// `[out, in / block]`, f32.
    scales: Tensor<B, 2>,
    /// `[out, in / block]`, f32, of the formats that have them.
    offsets: Option<Tensor<B, 2>>,
    #[module(skip)]
    bits: usize,
    #[module(skip)]
    zero: u8,
}

/// The same on the host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blocks {
    bits: usize,
    zero: u8,
    /// Numbers that share a scale.
    block: usize,
    /// Row-major; an int's first code in its lowest bits.
    codes: Vec<i32>,
    scales: Vec<f32>,
    /// As many as scales, or none.
    offsets: Vec<f32>,
}

fn mask(bits: usize) -> i32 {
    (1 << bits) - 1
}

impl<B: Backend> Quantized<B> {
    /// `blocks` of a matrix of `shape` on `device`.
    pub(crate) fn new(blocks: Blocks, [out, width]: [usize; 2], device: &B::Device) -> Self {
        let Blocks { bits, zero, block, codes, scales, offsets } = blocks;
        let floats = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, [out, width / block]), device);
        Self {
            codes: Tensor::from_data(TensorData::new(codes, [out, width * bits / 32]), (device, DType::I32)),
            offsets: (!offsets.is_empty()).then(|| floats(offsets)),
            scales: floats(scales),
            bits,
            zero,
        }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        let [out, ints] = self.codes.dims();
        [out, ints * 32 / self.bits]
    }

    /// On another device, through the host's memory.
    pub(crate) fn clone_to_device(self, device: &B::Device) -> Self {
        Self {
            codes: Tensor::from_data(self.codes.into_data(), (device, DType::I32)),
            scales: copied(self.scales, device),
            offsets: self.offsets.map(|offsets| copied(offsets, device)),
            ..self
        }
    }

    /// Out of autodiff.
    pub(crate) fn untracked(self) -> Quantized<Concrete> {
        match is::<B, Training>() {
            true => cast::<_, Quantized<Training>>(self).valid(),
            false => cast(self),
        }
    }

    /// `[out, in]`, f32.
    pub fn unpacked(&self) -> Tensor<B, 2> {
        let ([out, width], device) = (self.dims(), self.codes.device());
        if is_cpu_device::<B>(&device) {
            let [codes, scales] = [self.codes.to_data(), self.scales.to_data()];
            let offsets = self.offsets.as_ref().map(Tensor::to_data);
            let offsets = offsets.as_ref().map_or(&[][..], slice);
            let values = unpacked(self.bits, self.zero, slice(&codes), slice(&scales), offsets);
            return Tensor::from_data(TensorData::new(values, [out, width]), &device);
        }
        let code = |at: usize| {
            let shifted = self.codes.clone().bitwise_right_shift_scalar(((at * self.bits) as i32).elem());
            shifted.bitwise_and_scalar(mask(self.bits).elem())
        };
        let codes = Tensor::stack::<3>((0..32 / self.bits).map(code).collect(), 2).float();
        let blocks = self.scales.dims()[1];
        let per_block = |values: &Tensor<B, 2>| values.clone().reshape([out, blocks, 1]);
        let codes = codes.reshape([out, blocks, width / blocks]).sub_scalar(self.zero);
        let values = codes * per_block(&self.scales);
        let values = self.offsets.iter().fold(values, |values, offsets| values + per_block(offsets));
        values.reshape([out, width])
    }
}

impl Blocks {
    /// Bits of a code, the code of 0, numbers a scale, and whether there are offsets.
    fn layout(format: GgmlDType) -> Option<(usize, u8, usize, bool)> {
        Some(match format {
            GgmlDType::Q4_0 => (4, 8, 32, false),
            GgmlDType::Q4_1 | GgmlDType::Q4K => (4, 0, 32, true),
            GgmlDType::Q5_0 => (8, 16, 32, false),
            GgmlDType::Q5_1 => (8, 0, 32, true),
            GgmlDType::Q8_0 => (8, 128, 32, false),
            GgmlDType::Q6K => (8, 32, 16, false),
            _ => return None,
        })
    }

    /// Of code, scale and offset; 32 for a format that is not known.
    pub(crate) fn bits_a_number(format: GgmlDType) -> usize {
        Self::layout(format).map_or(32, |(bits, _, block, offsets)| bits + 32 * (1 + usize::from(offsets)) / block)
    }

    /// So many numbers.
    pub(crate) fn numbers(&self) -> usize {
        self.scales.len() * self.block
    }

    /// The blocks in `bytes`, whole ones, of a format of GGUF's.
    pub(crate) fn read(format: GgmlDType, bytes: &[u8]) -> Option<Self> {
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q8_0};
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
                Q4K => read.q4_k(bytes, &mut codes),
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

    /// 256 numbers: two f16, 12 bytes of eight 6-bit scales and offsets, 128 of codes.
    fn q4_k(&mut self, bytes: &[u8], codes: &mut Vec<u8>) {
        let (scale, offset, packed) = (half(bytes, 0), half(bytes, 2), &bytes[4..16]);
        for j in 0..8 {
            let (of_scale, of_offset) = match j {
                0..4 => (packed[j] & 63, packed[j + 4] & 63),
                _ => ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)),
            };
            self.scales.push(scale * f32::from(of_scale));
            self.offsets.push(-(offset * f32::from(of_offset)));
        }
        bytes[16..].chunks_exact(32).for_each(|pairs| nibbles(pairs, codes));
    }

    /// 256 numbers: 128 bytes of their low 4 bits, 64 of their high 2, sixteen i8 scales, one f16.
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

    /// With the rows in another `order`, which names every row.
    pub(crate) fn with_rows(self, order: &[usize]) -> Self {
        fn ordered<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
            let width = values.len() / order.len();
            order.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
        }
        let (codes, scales) = (ordered(&self.codes, order), ordered(&self.scales, order));
        Self { codes, scales, offsets: ordered(&self.offsets, order), ..self }
    }
}

fn slice<T: burn::tensor::Element>(data: &TensorData) -> &[T] {
    data.as_slice().expect("the type it was made of")
}

/// `scale · (code - zero) + offset`, row-major.
fn unpacked(bits: usize, zero: u8, codes: &[i32], scales: &[f32], offsets: &[f32]) -> Vec<f32> {
    let (per_int, mask, zero) = (32 / bits, mask(bits), f32::from(zero));
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

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The low halves of all bytes, then the high ones.
fn nibbles(bytes: &[u8], codes: &mut Vec<u8>) {
    codes.extend(bytes.iter().map(|byte| byte & 15));
    codes.extend(bytes.iter().map(|byte| byte >> 4));
}

/// A fifth bit each in the first four bytes.
fn five_bits(bytes: &[u8], codes: &mut Vec<u8>) {
    nibbles(&bytes[4..], codes);
    for (at, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[at / 8] >> (at % 8) & 1) << 4;
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::CpuStorage;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::device::BackendName;

    /// Random blocks; their f16 numbers are finite.
    fn bytes(format: GgmlDType, blocks: usize) -> Vec<u8> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut bytes: Vec<u8> = (0..blocks * format.type_size()).map(|_| rng.random()).collect();
        let halves: &[usize] = match format {
            GgmlDType::Q6K => &[208],
            _ => &[0, 2],
        };
        for block in bytes.chunks_exact_mut(format.type_size()) {
            for at in halves {
                let number = f16::from_f32(rng.random_range(-0.1..0.1)).to_le_bytes();
                block[*at..at + 2].copy_from_slice(&number);
            }
        }
        bytes
    }

    #[test]
    fn every_format_is_candle_s_to_the_bit() {
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q6K, Q8_0};
        let device = BackendName::Cpu.device().unwrap();
        for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q6K] {
            let (rows, width) = (6, 512);
            let bytes = bytes(format, rows * width / format.block_size());
            // candle casts the bytes to blocks that hold u16.
            let halves: Vec<u16> = bytes.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
            // SAFETY: u16 has no padding, and every byte is a u8.
            let aligned = unsafe { std::slice::from_raw_parts(halves.as_ptr().cast::<u8>(), bytes.len()) };
            let CpuStorage::F32(expected) = format.from_data(Cow::Borrowed(aligned)).dequantize(rows * width).unwrap()
            else {
                panic!("candle gives f32");
            };
            let blocks = Blocks::read(format, &bytes).unwrap();
            let kept = 4 * (blocks.codes.len() + blocks.scales.len() + blocks.offsets.len());
            assert_eq!(kept, rows * width * Blocks::bits_a_number(format) / 8, "{format:?}");
            assert_eq!(blocks.numbers(), rows * width);
            let unpack =
                |blocks: &Blocks| unpacked(blocks.bits, blocks.zero, &blocks.codes, &blocks.scales, &blocks.offsets);
            let to_the_bit = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
            assert_eq!(to_the_bit(&unpack(&blocks)), to_the_bit(&expected), "{format:?}");

            let matrix = Quantized::<Concrete>::new(blocks.clone(), [rows, width], &device);
            assert_eq!(matrix.dims(), [rows, width]);
            assert_eq!(matrix.unpacked().into_data().to_vec::<f32>().unwrap(), expected, "{format:?}");
            let order = [5, 0, 1, 4, 3, 2];
            let ordered = unpack(&blocks.with_rows(&order));
            for (row, from) in order.into_iter().enumerate() {
                assert_eq!(ordered[row * width..][..width], expected[from * width..][..width], "{format:?}");
            }
        }
        assert_eq!(Blocks::read(GgmlDType::F16, &[0; 4]), None);
    }
}
