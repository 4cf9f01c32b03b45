//! Frozen matrices that stay in the 4- and 8-bit blocks of their GGUF file.
//!
//! There is no second rounding: [`QuantizedWeight::dequantize`] returns, to the bit, the file's
//! numbers in f32.

use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use crate::device::{Concrete, Training};
use crate::kernels::{cast, is_cpu_device, same_type};
use crate::model::clone_to_device::copy_tensor;
use crate::model::formats::blocks::{Blocks, code_mask, dequantize};

/// A frozen `[out, in]` matrix on a device.
#[derive(Module, Debug)]
pub struct QuantizedWeight<B: Backend> {
    /// Codes, `[out, in · bits / 32]`, i32; an int has its first code in its lowest bits.
    codes: Tensor<B, 2, Int>,
    /// Scales, `[out, in / block]`, f32.
    scales: Tensor<B, 2>,
    /// Offsets, `[out, in / block]`, f32, of the formats that have them.
    offsets: Option<Tensor<B, 2>>,
    #[module(skip)]
    bits: usize,
    #[module(skip)]
    zero: u8,
}

impl<B: Backend> QuantizedWeight<B> {
    /// Puts the `blocks` of a matrix `[out, in]` on `device`.
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

    /// Returns the shape, `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        let [out, ints] = self.codes.dims();
        [out, ints * 32 / self.bits]
    }

    /// Copies the matrix to another device, through the host's memory.
    pub(crate) fn clone_to_device(self, device: &B::Device) -> Self {
        Self {
            codes: Tensor::from_data(self.codes.into_data(), (device, DType::I32)),
            scales: copy_tensor(self.scales, device),
            offsets: self.offsets.map(|offsets| copy_tensor(offsets, device)),
            ..self
        }
    }

    /// Returns the matrix without autodiff.
    pub(crate) fn without_autodiff(self) -> QuantizedWeight<Concrete> {
        match same_type::<B, Training>() {
            true => cast::<_, QuantizedWeight<Training>>(self).valid(),
            false => cast(self),
        }
    }

    /// Computes the matrix in f32.
    ///
    /// # Shapes
    /// Output: `[out, in]`.
    pub fn dequantize(&self) -> Tensor<B, 2> {
        let ([out, width], device) = (self.dims(), self.codes.device());
        if is_cpu_device::<B>(&device) {
            let [codes, scales] = [self.codes.to_data(), self.scales.to_data()];
            let offsets = self.offsets.as_ref().map(Tensor::to_data);
            let offsets = offsets.as_ref().map_or(&[][..], slice);
            let values = dequantize(self.bits, self.zero, slice(&codes), slice(&scales), offsets);
            return Tensor::from_data(TensorData::new(values, [out, width]), &device);
        }
        let code = |at: usize| {
            let shifted = self.codes.clone().bitwise_right_shift_scalar(((at * self.bits) as i32).elem());
            shifted.bitwise_and_scalar(code_mask(self.bits).elem())
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

fn slice<T: burn::tensor::Element>(data: &TensorData) -> &[T] {
    data.as_slice().expect("the type it was made of")
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::CpuStorage;
    use candle_core::quantized::GgmlDType;
    use half::f16;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::device::BackendName;

    /// Returns random blocks; their f16 numbers are finite.
    fn bytes(format: GgmlDType, blocks: usize) -> Vec<u8> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut bytes: Vec<u8> = (0..blocks * format.type_size()).map(|_| rng.random()).collect();
        let halves: &[usize] = match format {
            GgmlDType::Q6K => &[208],
            GgmlDType::Q2K => &[80, 82],
            GgmlDType::Q3K => &[108],
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
        use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        let device = BackendName::Cpu.device().unwrap();
        for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
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
            assert_eq!(kept, rows * width * Blocks::bits_per_number(format) / 8, "{format:?}");
            assert_eq!(blocks.numbers(), rows * width);
            let unpack =
                |blocks: &Blocks| dequantize(blocks.bits, blocks.zero, &blocks.codes, &blocks.scales, &blocks.offsets);
            let to_the_bit = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
            assert_eq!(to_the_bit(&unpack(&blocks)), to_the_bit(&expected), "{format:?}");

            let matrix = QuantizedWeight::<Concrete>::new(blocks.clone(), [rows, width], &device);
            assert_eq!(matrix.dims(), [rows, width]);
            assert_eq!(matrix.dequantize().into_data().to_vec::<f32>().unwrap(), expected, "{format:?}");
            let order = [5, 0, 1, 4, 3, 2];
            let ordered = unpack(&blocks.with_rows(&order));
            for (row, from) in order.into_iter().enumerate() {
                assert_eq!(ordered[row * width..][..width], expected[from * width..][..width], "{format:?}");
            }
        }
        assert_eq!(Blocks::read(GgmlDType::F16, &[0; 4]), None);
    }
}
