//! CUDA sources compiled by NVRTC for the card that was found, and kept on disk.
//!
//! A compiled file is named by everything that went into it: source, headers, element type,
//! architecture, compiler and driver version. It is written beside its place and renamed into it,
//! so that a reader never sees half of one, whoever else is starting at the same time.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, process, ptr, thread};

use contract::tensor::DType;
use cudarc::driver::{CudaContext, CudaModule};
use cudarc::nvrtc::{Ptx, sys};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

use super::found::{driver_version, nvrtc_version};
use super::status::During;
use super::{gemm_stream, lora_long_shrink};

/// A file of `kernels/cuda`, embedded.
pub struct Source {
    /// File name without its extension.
    pub name: &'static str,
    /// What it says.
    pub text: &'static str,
}

macro_rules! embedded {
    ($extension:literal: $($name:literal),+) => {
        &[$(Source {
            name: $name,
            text: include_str!(concat!("../../cuda/", $name, $extension)),
        }),+]
    };
}

const HEADERS: &[Source] = embedded!(
    ".cuh": "adapters", "adapters_shrink", "add_norm", "attention", "attention_own",
        "attention_tiles", "bulk", "factors",
    "chain", "cluster", "element", "gemm_stream", "lora", "lora_decode", "lora_decode_expand",
    "lora_few", "lora_long", "mma", "paged", "params", "peer", "reduce", "shrink_sums", "wgmma"
);

const SOURCES: &[Source] = embedded!(
    ".cu": "add_rms_norm", "attention_decode", "attention_groups", "attention_rows",
    "attention_tiles", "choose", "embed", "gemm_groups", "gemm_stream", "head_norm",
    "lora_decode_expand", "lora_decode_gated", "lora_decode_shrink", "lora_expand", "lora_gated",
    "lora_gated_few", "lora_long_expand", "lora_long_norm", "lora_long_shrink", "lora_rows",
    "lora_shrink", "peer_gather", "peer_reduce", "peer_reduce_norm", "pick_rows", "rms_norm",
    "rope_kv_store", "round", "silu_mul"
);

/// Compiled for tensor cores, which do not multiply f32.
const SIXTEEN_BIT_ONLY: &[&str] = &[
    "attention_decode",
    "attention_groups",
    "attention_tiles",
    "gemm_groups",
    "gemm_stream",
    "lora_decode_expand",
    "lora_decode_gated",
    "lora_decode_shrink",
    "lora_gated",
    "lora_gated_few",
    "lora_long_expand",
    "lora_long_norm",
    "lora_long_shrink",
    "lora_rows",
];

/// Need bulk copies and clusters: compute capability 9.0.
const HOPPER_ONLY: &[&str] = &["gemm_stream", "lora_long_norm"];

/// Need products of warpgroups: compute capability 9.0, and no other.
const WARPGROUPS: &[&str] = &["attention_groups", "gemm_groups"];

/// Shared memory that a block may have on every card of compute capability 8.0 on, in bytes.
pub const SHARED_BYTES_ANYWHERE: usize = 99 << 10;

/// Need more than that, where cards for data centres have it.
const LARGE: &[(&str, usize)] = &[
    ("gemm_groups", gemm_stream::SHARED_BYTES),
    ("gemm_stream", gemm_stream::SHARED_BYTES),
    ("lora_long_shrink", lora_long_shrink::SHARED_BYTES),
];

/// Where a program runs and what it computes with.
#[derive(Clone, Debug)]
pub struct Target {
    /// As `nvcc -arch` takes it: `sm_90a`.
    pub architecture: String,
    /// Whether it has bulk copies and clusters of blocks (compute capability 9.0 on).
    pub copies: bool,
    /// Whether it has products of warpgroups (compute capability 9.0).
    pub warpgroups: bool,
    /// Shared memory that a block may have, in bytes.
    pub shared_bytes: usize,
    /// The element type of activations and weights.
    pub dtype: DType,
}

impl Target {
    /// The target of a compute capability. Hopper and the first Blackwell have instructions that
    /// only their own architecture name unlocks.
    pub fn new((major, minor): (i32, i32), shared_bytes: usize, dtype: DType) -> Self {
        let own = if matches!((major, minor), (9, 0) | (10, 0)) { "a" } else { "" };
        let architecture = format!("sm_{major}{minor}{own}");
        let (copies, warpgroups) = (major >= 9, (major, minor) == (9, 0));
        Self { architecture, copies, warpgroups, shared_bytes, dtype }
    }

    fn compiles(&self, source: &Source) -> bool {
        let needs = LARGE.iter().find(|(name, _)| *name == source.name);
        let room = needs.is_none_or(|(_, bytes)| *bytes <= self.shared_bytes);
        room && (self.dtype != DType::F32 || !SIXTEEN_BIT_ONLY.contains(&source.name))
            && (self.copies || !HOPPER_ONLY.contains(&source.name))
            && (self.warpgroups || !WARPGROUPS.contains(&source.name))
    }

    fn options(&self) -> [String; 3] {
        let element = match self.dtype {
            DType::Bf16 => "-DELEMENT_BF16",
            DType::F16 => "-DELEMENT_F16",
            DType::F32 => "-DELEMENT_F32",
        };
        [format!("-arch={}", self.architecture), "-std=c++17".to_owned(), element.to_owned()]
    }
}

/// Compiled kernels, one module a source file.
pub struct Programs(Vec<(&'static str, Arc<CudaModule>)>);

impl Programs {
    /// All kernels for `target`: from the folder `cache` where it has them, else compiled and put
    /// there.
    pub fn load(context: &Arc<CudaContext>, target: &Target, cache: Option<&Path>) -> Result<Self> {
        let load = |source: &'static Source| -> Result<_> {
            let binary = Ptx::from_binary(cached(source, target, cache)?);
            let from = cache.map_or_else(String::new, |from| format!(" from {}", from.display()));
            let what = format!("loading {}.cu for {}{from}", source.name, target.architecture);
            Ok((source.name, context.load_module(binary).during(&what)?))
        };
        thread::scope(|scope| {
            let sources = SOURCES.iter().filter(|source| target.compiles(source));
            let threads: Vec<_> = sources.map(|source| scope.spawn(move || load(source))).collect();
            let loaded = threads.into_iter().map(|thread| {
                thread.join().expect("a compiling thread does not panic: this is a bug")
            });
            Ok(Self(loaded.collect::<Result<_>>()?))
        })
    }

    /// The module of one source file; `None` if it is not compiled for this target.
    pub fn module(&self, name: &str) -> Option<&Arc<CudaModule>> {
        self.0.iter().find(|(held, _)| *held == name).map(|(_, module)| module)
    }
}

fn cached(source: &Source, target: &Target, cache: Option<&Path>) -> Result<Vec<u8>> {
    let Some(folder) = cache else { return compile(source, target) };
    let path = folder.join(format!("{}-{}.cubin", source.name, digest(source, target)));
    if let Ok(binary) = fs::read(&path) {
        return Ok(binary);
    }
    let binary = compile(source, target)?;
    // A folder that cannot be written costs the next start its time, and nothing else.
    let _ = keep(&path, &binary);
    Ok(binary)
}

fn keep(path: &Path, binary: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let unique = format!("{}-{:?}.tmp", process::id(), thread::current().id());
    let beside = PathBuf::from(format!("{}.{unique}", path.display()));
    fs::write(&beside, binary)?;
    fs::rename(&beside, path)
}

/// Everything that the compiled file depends on.
fn digest(source: &Source, target: &Target) -> String {
    let mut hash = Sha256::new();
    for part in HEADERS.iter().chain([source]) {
        hash.update(part.text);
    }
    let versions = (driver_version(), nvrtc_version());
    hash.update(format!("{:?} {versions:?}", target.options()));
    hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compile(source: &Source, target: &Target) -> Result<Vec<u8>> {
    let program = Program::new(source)?;
    let options = target.options().map(c_string);
    let pointers = options.each_ref().map(|option| option.as_ptr());
    // SAFETY: the program is alive and the options are as many C strings as announced.
    let status =
        unsafe { sys::nvrtcCompileProgram(program.0, pointers.len() as i32, pointers.as_ptr()) };
    status.result().map_err(|error| {
        let says = format!("{error}. It says: {}", program.log());
        uncompiled(source.name, target, nvrtc_version(), &says)
    })?;
    program.binary()
}

fn uncompiled(name: &str, target: &Target, (major, minor): (i32, i32), says: &str) -> Error {
    let architecture = &target.architecture;
    Error::Device(format!(
        "NVRTC {major}.{minor} cannot compile {name}.cu for {architecture}; a newer one may know \
         this GPU: {says}"
    ))
}

/// A program that NVRTC holds; freed on drop.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &Source) -> Result<Self> {
        let (text, name) = (c_string(source.text), c_string(source.name));
        let texts: Vec<_> = HEADERS.iter().map(|header| c_string(header.text)).collect();
        let names: Vec<_> =
            HEADERS.iter().map(|header| c_string(format!("{}.cuh", header.name))).collect();
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).collect()
        };
        let (texts, names) = (pointers(&texts), pointers(&names));
        let mut program = ptr::null_mut();
        // SAFETY: all strings outlive the call, and NVRTC copies them.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                text.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        status.result().during("creating a program")?;
        Ok(Self(program))
    }

    fn binary(&self) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program is alive and was compiled.
        let status = unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut bytes) };
        status.result().during("asking for the size of compiled code")?;
        let mut binary = vec![0_u8; bytes];
        // SAFETY: the buffer is as long as NVRTC said.
        let status = unsafe { sys::nvrtcGetCUBIN(self.0, binary.as_mut_ptr().cast()) };
        status.result().during("fetching compiled code")?;
        Ok(binary)
    }

    /// What the compiler said; empty if it cannot be had.
    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let log = unsafe { cudarc::nvrtc::result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c.cast_unsigned()).collect();
        let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
        text.to_string_lossy().into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created by NVRTC and is freed once.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

fn c_string(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).expect("sources and options have no zero bytes: this is a bug")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_include_of_a_source_is_embedded() {
        let known: Vec<_> = HEADERS.iter().map(|header| format!("{}.cuh", header.name)).collect();
        for part in SOURCES.iter().chain(HEADERS) {
            let lines = part.text.lines().filter_map(|line| line.strip_prefix("#include \""));
            for include in lines.map(|line| line.trim_end_matches('"')) {
                assert!(known.iter().any(|name| name == include), "{} in {}", include, part.name);
            }
        }
    }

    #[test]
    fn an_architecture_that_the_compiler_does_not_know_is_named_with_both() {
        let target = Target::new((12, 1), SHARED_BYTES_ANYWHERE, DType::Bf16);
        let why = uncompiled("embed", &target, (12, 4), "invalid value for --gpu-architecture");
        let why = why.to_string();
        for part in ["NVRTC 12.4", "embed.cu", "sm_121", "a newer one", "invalid value"] {
            assert!(why.contains(part), "{why:?} lacks {part:?}");
        }
    }

    #[test]
    fn a_card_compiles_what_it_has_room_and_instructions_for() {
        let compiled = |capability, shared_bytes| {
            let target = Target::new(capability, shared_bytes, DType::Bf16);
            let compiles = |name| SOURCES.iter().any(|it| it.name == name && target.compiles(it));
            ["embed", "lora_long_shrink", "gemm_stream", "attention_groups", "gemm_groups"]
                .map(compiles)
        };
        assert_eq!(compiled((8, 0), 163 << 10), [true, true, false, false, false]);
        assert_eq!(compiled((8, 9), SHARED_BYTES_ANYWHERE), [true, false, false, false, false]);
        assert_eq!(compiled((9, 0), 227 << 10), [true; 5]);
        assert_eq!(compiled((9, 0), SHARED_BYTES_ANYWHERE), [true, false, false, true, false]);
        assert_eq!(compiled((10, 0), 227 << 10), [true, true, true, false, false]);
        assert_eq!(compiled((12, 0), SHARED_BYTES_ANYWHERE), [true, false, false, false, false]);
    }

    #[test]
    fn a_capability_has_the_name_that_unlocks_its_instructions() {
        let target = |capability| Target::new(capability, SHARED_BYTES_ANYWHERE, DType::Bf16);
        let name = |capability| target(capability).architecture;
        assert_eq!(
            [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)].map(name),
            ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120"]
        );
    }
}
