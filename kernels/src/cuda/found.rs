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
    #[error("no GPU of compute capability 8.0 or newer (Ampere): found {0}")]
    NoDevice(String),
}

/// The devices that the backend can run on; at least one.
pub fn found() -> Result<Vec<Found>, WhyNot> {
    libraries()?;
    whole(devices).unwrap_or_else(|lacks| Err(WhyNot::Driver(lacks)))
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
    init().map_err(failed)?;
    versions()?;
    let count = device::get_count().map_err(failed)?;
    let all = (0..count).map(describe).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let (usable, old): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|found| found.capability >= CAPABILITY_MIN);
    if usable.is_empty() {
        let names: Vec<_> = old.into_iter().map(|found| found.name).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(WhyNot::NoDevice(names));
    }
    Ok(usable)
}

/// cudarc panics where a library is missing, so each is looked for first.
fn libraries() -> Result<(), WhyNot> {
    // SAFETY: loading these libraries has no effect but to load them; they are NVIDIA's own.
    let (driver, compiler, blas) = unsafe {
        (sys::is_culib_present(), nvrtc::sys::is_culib_present(), cublaslt::sys::is_culib_present())
    };
    let missing = [
        (driver, "the NVIDIA driver", "libcuda.so", "install the driver"),
        (compiler, "NVRTC", "libnvrtc.so", "install the CUDA toolkit or nvidia-cuda-nvrtc"),
        (blas, "cuBLASLt", "libcublasLt.so", "install the CUDA toolkit or nvidia-cublas"),
    ];
    match missing.into_iter().find(|(present, ..)| !present) {
        Some((_, library, names, cure)) => Err(WhyNot::Library { library, names, cure }),
        None => Ok(()),
    }
}

fn versions() -> Result<(), WhyNot> {
    let (driver, nvrtc) = (driver_version() / 1000, nvrtc_version().0);
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
    fn a_machine_without_cuda_is_told_what_was_looked_for() {
        match found() {
            Ok(devices) => assert!(devices.iter().all(|found| found.memory > 0)),
            Err(WhyNot::Library { library, names, cure }) => {
                let why = WhyNot::Library { library, names, cure }.to_string();
                assert!(why.contains(library) && why.contains(names) && why.contains(cure));
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}
