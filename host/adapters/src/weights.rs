//! `adapter_model.safetensors`: a header with names and shapes, then the tensors, read in order.
//!
//! The file is read, not mapped: a trainer may write the folder again while it is being loaded, and
//! a mapped file that shrinks kills the process. Reading tensor by tensor also gives the digest and
//! the factors the very same bytes, and takes no more memory than the largest tensor.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use contract::tensor::DType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::AdapterError;

/// The file's name in a PEFT folder.
pub const FILE: &str = "adapter_model.safetensors";

/// A header of 1,764 factors takes 0.2 MiB.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// The weights file of an adapter, read up to its tensors.
#[derive(Debug)]
pub struct Weights {
    /// What there is, in the order of the file.
    pub tensors: Vec<Tensor>,
    /// The bytes before the first tensor.
    pub header: Vec<u8>,
    /// Stands at the first tensor.
    pub data: File,
}

/// A tensor's line in the header.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    dtype: DType,
    bytes: usize,
}

impl Weights {
    /// Reads and checks the header.
    pub fn open(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(FILE);
        let mut data = File::open(&path).map_err(|source| unreadable(folder, source))?;
        let bytes = data.metadata().map_err(|source| unreadable(folder, source))?.len();
        let header = read_header(&mut data, bytes)?;
        let tensors = parse_header(&header, bytes)?;
        Ok(Self { tensors, header, data })
    }
}

impl Tensor {
    /// Reads the tensor's bytes from where `data` stands, so tensors are read in their order.
    pub fn read(&self, data: &mut File, bytes: &mut Vec<u8>) -> Result<(), AdapterError> {
        bytes.resize(self.bytes, 0);
        data.read_exact(bytes).map_err(|source| failed(source, ""))
    }

    /// Converts the tensor's bytes to f32, all of them finite, `scaling` multiplied in.
    pub fn values(
        &self,
        bytes: &[u8],
        scaling: f32,
        values: &mut Vec<f32>,
    ) -> Result<(), AdapterError> {
        match self.dtype {
            DType::F32 => convert(bytes, values, f32::from_le_bytes),
            DType::Bf16 => convert(bytes, values, |[low, high]: [u8; 2]| {
                f32::from_bits(u32::from_le_bytes([0, 0, low, high]))
            }),
            DType::F16 => convert_f16(bytes, values),
        }
        let mut finite = true;
        for value in values {
            *value *= scaling;
            finite &= value.is_finite();
        }
        match finite {
            true => Ok(()),
            false => Err(AdapterError::NotFinite { tensor: self.name.clone() }),
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], values: &mut Vec<f32>, value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    values.clear();
    values.extend(elements.iter().map(|element| value(*element)));
}

/// The crate's slice conversion uses the machine's instructions for it.
fn convert_f16(bytes: &[u8], values: &mut Vec<f32>) {
    let (elements, _) = bytes.as_chunks::<2>();
    let halves: Vec<f16> = elements.iter().map(|element| f16::from_le_bytes(*element)).collect();
    values.resize(halves.len(), 0.0);
    halves.convert_to_f32_slice(values);
}

/// The length in 8 bytes and the header in JSON.
fn read_header(data: &mut File, file_bytes: u64) -> Result<Vec<u8>, AdapterError> {
    let mut header = vec![0; 8];
    let short = || AdapterError::Format(format!("{file_bytes} bytes hold no header"));
    data.read_exact(&mut header).map_err(|_| short())?;
    let length = u64::from_le_bytes(header[..8].try_into().expect("8 bytes: this is a bug"));
    if length.saturating_add(8) > file_bytes {
        let message = format!("its header has {length} bytes, the file {file_bytes}");
        return Err(AdapterError::Format(message));
    }
    if length > HEADER_BYTES_MAX {
        let (file, bytes_max) = ("the header of adapter_model.safetensors", HEADER_BYTES_MAX);
        return Err(AdapterError::TooLarge { file, bytes: length, bytes_max });
    }
    header.resize(8 + length as usize, 0);
    data.read_exact(&mut header[8..]).map_err(|source| failed(source, ""))?;
    Ok(header)
}

fn parse_header(header: &[u8], file_bytes: u64) -> Result<Vec<Tensor>, AdapterError> {
    let malformed = |error: serde_json::Error| AdapterError::Format(error.to_string());
    let metadata: Metadata = serde_json::from_slice(&header[8..]).map_err(malformed)?;
    let (needed, held) = (metadata.data_len() as u64, file_bytes - header.len() as u64);
    if needed != held {
        let message = format!("its tensors take {needed} bytes, the file holds {held}");
        return Err(AdapterError::Format(message));
    }
    let lines = metadata.offset_keys().into_iter();
    lines
        .map(|name| {
            let info = metadata.info(&name).expect("a name of the header itself: this is a bug");
            Tensor::new(name, info)
        })
        .collect()
}

impl Tensor {
    fn new(name: String, info: &TensorInfo) -> Result<Self, AdapterError> {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => {
                return Err(AdapterError::DType { tensor: name, found: format!("{other:?}") });
            }
        };
        let (start, end) = info.data_offsets;
        Ok(Self { name, shape: info.shape.clone(), dtype, bytes: end - start })
    }
}

fn unreadable(folder: &Path, source: io::Error) -> AdapterError {
    let pickled = source.kind() == ErrorKind::NotFound && folder.join("adapter_model.bin").exists();
    let hint = "; adapter_model.bin is not read, convert it to safetensors (PEFT writes them)";
    failed(source, if pickled { hint } else { "" })
}

fn failed(source: io::Error, hint: &'static str) -> AdapterError {
    AdapterError::Read { file: FILE, source, hint }
}
