//! Whether this machine can run the CUDA backend, and on which devices.

use std::panic;

use cudarc::driver::result::{device, init};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{DriverError, sys};
use cudarc::{cublaslt, nvrtc};

/// The oldest architecture with bf16 tensor cores, which the kernels are written for.
const CAPABILITY_MIN: (i32, i32) = (8, 0);

/// A device that the backend can run on.
#[derive(Clone, Debug)]
pub struct Found {
    /// What [`super::Cuda::open`] takes.
    pub ordinal: usize,
    /// As the driver calls it.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Device memory in bytes.
    pub memory: usize,
}

/// Why there is no device to run on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyNot {
    /// A library is missing.
    #[error("{library} was not found: looked for {names} on the library path; {cure}")]
    Library {
        /// What it is.
        library: &'static str,
        /// Its file names.
        names: &'static str,
        /// What would help.
        cure: &'static str,
    },
    /// The driver is there but does not work.
    #[error("the NVIDIA driver does not start: {0}")]
    Driver(String),
    /// The driver is older than the compiler whose code it has to run.
    #[error(
        "the NVIDIA driver runs CUDA {driver} and the NVRTC found compiles for CUDA {nvrtc}: \
         a driver as new as that would do, or an NVRTC {driver}"
    )]
    OldDriver {
        /// Major version.
        driver: i32,
        /// Major version.
        nvrtc: i32,
    },
    /// NCCL is there but too old.
    #[error(
        "NCCL {}.{}.{} was found: {}.{}.{} or newer would do", found.0, found.1, found.2,
        needed.0, needed.1, needed.2
    )]
    OldNccl {
        /// Major, minor and patch version.
        found: (i32, i32, i32),
        /// Likewise.
        needed: (i32, i32, i32),
    },
    /// There is no device, or none that is new enough.
    #[error(
        "no GPU of compute capability 8.0 or newer (Ampere): found {}",
        if .0.is_empty() { "none" } else { .0 }
    )]
    NoDevice(String),
}

/// The libraries that are looked for, with their file names and what would help.
const DRIVER: [&str; 3] = ["the NVIDIA driver", "libcuda.so", "install the driver"];
const COMPILER: [&str; 3] =
    ["NVRTC", "libnvrtc.so", "install the CUDA toolkit or nvidia-cuda-nvrtc"];
const BLAS: [&str; 3] = ["cuBLASLt", "libcublasLt.so", "install the CUDA toolkit or nvidia-cublas"];

impl WhyNot {
    /// Whether the machine just has no GPU, or no driver that would know of one.
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Library { library, .. } => *library == DRIVER[0],
            Self::NoDevice(found) => found.is_empty(),
            Self::Driver(_) | Self::OldDriver { .. } | Self::OldNccl { .. } => false,
        }
    }
}

/// The devices that the backend can run on; at least one.
pub fn found() -> Result<Vec<Found>, WhyNot> {
    // SAFETY: loading the library has no effect but to load it; it is NVIDIA's own.
    present(unsafe { sys::is_culib_present() }, DRIVER)?;
    whole(devices).unwrap_or_else(|lacks| Err(WhyNot::Driver(lacks)))
}

/// cudarc panics where a library is missing, so each is looked for first.
fn present(is: bool, [library, names, cure]: [&'static str; 3]) -> Result<(), WhyNot> {
    if is { Ok(()) } else { Err(WhyNot::Library { library, names, cure }) }
}

/// What `ask` says, or what its library lacks: cudarc panics where a function is missing.
pub fn whole<T>(ask: fn() -> T) -> Result<T, String> {
    panic::catch_unwind(ask).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.unwrap_or_else(|| "its library is not whole".to_owned())
    })
}

fn devices() -> Result<Vec<Found>, WhyNot> {
    let failed = |error: DriverError| WhyNot::Driver(error.to_string());
    match init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return usable(Vec::new()),
        started => started.map_err(failed)?,
    }
    let count = device::get_count().map_err(failed)?;
    let all = (0..count).map(describe).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let usable = usable(all)?;
    // What is missing beside a driver matters to those who have a GPU.
    // SAFETY: loading these libraries has no effect but to load them; they are NVIDIA's own.
    let (compiler, blas) =
        unsafe { (nvrtc::sys::is_culib_present(), cublaslt::sys::is_culib_present()) };
    present(compiler, COMPILER)?;
    present(blas, BLAS)?;
    runs(driver_version() / 1000, nvrtc_version().0)?;
    Ok(usable)
}

/// Those that are new enough; at least one.
fn usable(all: Vec<Found>) -> Result<Vec<Found>, WhyNot> {
    let (usable, old): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|found| found.capability >= CAPABILITY_MIN);
    if usable.is_empty() {
        let name = |Found { name, capability: (major, minor), .. }: &Found| {
            format!("{name} ({major}.{minor})")
        };
        let names: Vec<_> = old.iter().map(name).collect();
        return Err(WhyNot::NoDevice(names.join(", ")));
    }
    Ok(usable)
}

/// Whether a driver runs what a compiler makes, by major versions of CUDA.
fn runs(driver: i32, nvrtc: i32) -> Result<(), WhyNot> {
    if driver < nvrtc { Err(WhyNot::OldDriver { driver, nvrtc }) } else { Ok(()) }
}

/// The CUDA version that the driver runs, as 1000 * major + 10 * minor; 0 if it does not say.
pub fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the pointer is to a live integer; the library was found before.
    let _ = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    version
}

/// Major and minor version of NVRTC.
pub fn nvrtc_version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers are to live integers; the library was found before.
    let _ = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (major, minor)
}

fn describe(ordinal: i32) -> Result<Found, DriverError> {
    let device = device::get(ordinal)?;
    // SAFETY: the device handle is the driver's own.
    let attribute = |which| unsafe { device::get_attribute(device, which) };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Found {
        ordinal: ordinal as usize,
        name: device::get_name(device)?,
        capability: (major, minor),
        // SAFETY: as above.
        memory: unsafe { device::total_mem(device) }?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_devices_or_a_reason() {
        match found() {
            Ok(devices) => assert!(devices.iter().all(|found| found.memory > 0)),
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }

    #[test]
    fn a_missing_library_is_named_with_what_was_looked_for_and_what_would_do() {
        for library in [DRIVER, COMPILER, BLAS] {
            let why = present(false, library).unwrap_err();
            assert!(library.iter().all(|part| why.to_string().contains(part)), "{why}");
            assert_eq!(why.is_plain(), library == DRIVER);
        }
        assert_eq!(present(true, DRIVER), Ok(()));
    }

    fn card(name: &str, capability: (i32, i32)) -> Found {
        Found { ordinal: 0, name: name.to_owned(), capability, memory: 1 << 34 }
    }

    #[test]
    fn cards_that_are_too_old_are_named_with_what_would_do() {
        let cards = vec![card("Tesla T4", (7, 5)), card("NVIDIA A100", (8, 0))];
        assert_eq!(usable(cards).unwrap()[0].name, "NVIDIA A100");
        let why = usable(vec![card("Tesla T4", (7, 5))]).unwrap_err();
        assert!(!why.is_plain());
        let why = why.to_string();
        assert!(why.contains("8.0 or newer") && why.contains("found Tesla T4 (7.5)"), "{why}");
        let none = usable(Vec::new()).unwrap_err();
        assert!(none.is_plain() && none.to_string().ends_with("found none"), "{none}");
    }

    #[test]
    fn a_driver_older_than_the_compiler_is_refused_with_both_versions() {
        assert_eq!(runs(13, 12), Ok(()));
        let why = runs(12, 13).unwrap_err().to_string();
        assert!(why.contains("runs CUDA 12") && why.contains("compiles for CUDA 13"), "{why}");
    }
}
