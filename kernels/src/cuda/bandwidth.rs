//! How fast a device moves memory.

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUevent_flags;

use crate::error::Result;
use crate::ops::Copied;

use super::memory::Buf;
use super::status::During;

/// More than any cache holds.
const ELEMENTS: usize = 128 << 20;
const PASSES: u32 = 20;

/// Memory that a copy on the device reads and writes in a second, in GB (10^9 bytes).
pub fn bandwidth(ordinal: usize) -> Result<f64> {
    let context = CudaContext::new(ordinal).during("opening the device")?;
    let stream = context.new_stream().during("creating a stream")?;
    let buf = || Buf::new(&stream, ELEMENTS, contract::tensor::DType::F32);
    let (from, mut to) = (buf()?, buf()?);
    let mut pass = || to.copy_from(&from, ELEMENTS);
    pass()?;
    let event = || {
        let event = context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        event.during("creating an event")
    };
    let (start, end) = (event()?, event()?);
    start.record(&stream).during("recording an event")?;
    (0..PASSES).try_for_each(|_| pass())?;
    end.record(&stream).during("recording an event")?;
    let ms = start.elapsed_ms(&end).during("timing copies")?;
    let bytes = f64::from(PASSES) * (2 * ELEMENTS * size_of::<f32>()) as f64;
    Ok(bytes / f64::from(ms) / 1e6)
}
