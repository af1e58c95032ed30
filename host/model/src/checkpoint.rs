//! Safetensors files of a base model: what they hold, and maps of it.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use contract::tensor::DType;
use memmap2::{Mmap, MmapOptions};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::tensors::Tensor;

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a folder's safetensors files. Only headers have been read.
pub struct Checkpoint {
    folder: PathBuf,
    stored: HashMap<String, Stored>,
}

/// Where a tensor lies.
struct Stored {
    shard: Arc<Shard>,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<usize>,
}

/// One file.
struct Shard {
    path: PathBuf,
    file: File,
}

/// The part of [`INDEX`] that is read.
#[derive(Deserialize)]
struct Index {
    /// Tensor name to file name.
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Reads the headers of all files in `folder` and checks that they are whole.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut stored = HashMap::new();
        for name in file_names(folder)? {
            let path = folder.join(name);
            let file = File::open(&path).map_err(Error::unreadable(&path))?;
            stored.extend(headers(Shard { path, file })?);
        }
        Ok(Self { folder: folder.to_owned(), stored })
    }

    /// Refuses a checkpoint that lacks one of `expected`, has it in another shape or element type,
    /// or has a tensor beside them that the forward pass would leave out.
    pub fn check(&self, expected: &[Tensor]) -> Result<()> {
        let mut names = BTreeSet::new();
        for tensor in expected {
            let stored = self.get(&tensor.name)?;
            let Stored { shard, shape, .. } = stored;
            if *shape != tensor.shape {
                let (name, right) = (&tensor.name, &tensor.shape);
                let why = format!("{name} is {shape:?}; config.json makes it {right:?}");
                return Err(Error::unusable(&shard.path, why));
            }
            stored.dtype(&tensor.name)?;
            names.insert(tensor.name.as_str());
        }
        let unread = |name: &&String| !names.contains(name.as_str()) && !is_derived(name);
        match self.stored.keys().filter(unread).min() {
            None => Ok(()),
            Some(name) => {
                let why = format!("{name} is no tensor of the model that config.json describes");
                Err(Error::unusable(&self.stored[name].shard.path, why))
            }
        }
    }

    /// The element type of a tensor, and a map of some of its rows.
    pub fn map(&self, tensor: &Tensor, rows: Range<usize>) -> Result<(DType, Mmap)> {
        let stored = self.get(&tensor.name)?;
        let dtype = stored.dtype(&tensor.name)?;
        let row = tensor.cols() * dtype.bytes();
        let start = stored.range.start + rows.start * row;
        let Shard { path, file } = &*stored.shard;
        let map = map(file, start..start + rows.len() * row).map_err(Error::unreadable(path))?;
        Ok((dtype, map))
    }

    fn get(&self, name: &str) -> Result<&Stored> {
        let missing = || Error::unusable(&self.folder, format!("no file has the tensor {name}"));
        self.stored.get(name).ok_or_else(missing)
    }
}

impl Stored {
    fn dtype(&self, name: &str) -> Result<DType> {
        match self.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::Bf16),
            other => {
                let why = format!("{name} is {other:?}; supported are F32, F16 and BF16");
                Err(Error::unusable(&self.shard.path, why))
            }
        }
    }
}

/// Tensors that some checkpoints carry although they follow from others.
fn is_derived(name: &str) -> bool {
    name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq")
}

fn file_names(folder: &Path) -> Result<BTreeSet<String>> {
    let path = folder.join(INDEX);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let index: Index = serde_json::from_str(&text)
                .map_err(|error| Error::unusable(&path, error.to_string()))?;
            Ok(index.weight_map.into_values().collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !folder.join(WHOLE).exists() {
                return Err(Error::unusable(folder, format!("has neither {WHOLE} nor {INDEX}")));
            }
            Ok(BTreeSet::from([WHOLE.to_owned()]))
        }
        Err(error) => Err(Error::unreadable(&path)(error)),
    }
}

/// The tensors of one file.
fn headers(shard: Shard) -> Result<Vec<(String, Stored)>> {
    let unreadable = Error::unreadable(&shard.path);
    let (length, header) = shard
        .file
        .metadata()
        .and_then(|metadata| {
            let length = metadata.len() as usize;
            Ok((length, map(&shard.file, 0..length)?))
        })
        .map_err(unreadable)?;
    let (header_length, metadata) = SafeTensors::read_metadata(&header).map_err(|error| {
        Error::unusable(&shard.path, format!("{error} (the file has {length} bytes)"))
    })?;
    let (data, shard) = (8 + header_length, Arc::new(shard));
    let stored = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let range = data + start..data + end;
        let shard = Arc::clone(&shard);
        (name, Stored { shard, dtype: info.dtype, shape: info.shape.clone(), range })
    });
    Ok(stored.collect())
}

/// Maps one range of a file. A map lives as long as its tensor is read, so what is mapped beside
/// the model never exceeds one tensor a rank.
fn map(file: &File, range: Range<usize>) -> io::Result<Mmap> {
    let mut options = MmapOptions::new();
    options.offset(range.start as u64).len(range.len());
    // SAFETY: the bytes are read as plain numbers, for which every value is valid. A file that
    // another process cuts short meanwhile ends this one with SIGBUS; the model's folder is the
    // operator's, and reading it through a copy would not make a torn checkpoint right.
    unsafe { options.map(file) }
}
