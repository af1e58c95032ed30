//! Statuses of the driver, NVRTC and cuBLASLt as errors that say what was being done.

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use cudarc::nccl::result::NcclError;
use cudarc::nvrtc::result::NvrtcError;

use crate::error::{self, Error};

use super::nccl;

/// Adds what was being done to a status.
pub trait During<T> {
    /// `what` finishes the sentence "the GPU failed while ...".
    fn during(self, what: &str) -> error::Result<T>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, what: &str) -> error::Result<T> {
        self.map_err(|error| device("CUDA driver", what, &error))
    }
}

impl<T> During<T> for Result<T, NvrtcError> {
    fn during(self, what: &str) -> error::Result<T> {
        self.map_err(|error| device("NVRTC", what, &error))
    }
}

impl<T> During<T> for Result<T, CublasError> {
    fn during(self, what: &str) -> error::Result<T> {
        self.map_err(|error| device("cuBLASLt", what, &error))
    }
}

impl<T> During<T> for Result<T, NcclError> {
    fn during(self, what: &str) -> error::Result<T> {
        self.map_err(|NcclError(status)| {
            let says = nccl::last_error();
            Error::Device(format!("NCCL failed while {what}: {status:?}. It says: {says}"))
        })
    }
}

/// The error of an allocation of `bytes` for `what`.
pub fn allocation(error: DriverError, what: &'static str, bytes: usize) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Memory { what, bytes },
        _ => device("CUDA driver", what, &error),
    }
}

fn device(who: &str, what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Device(format!("{who} failed while {what}: {error}"))
}
