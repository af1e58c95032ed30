//! How long a device stands idle between steps, told by events around each.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;

use crate::error::Result;

use super::device::Device;
use super::status::During;

/// Events around the steps under way.
#[derive(Default)]
pub struct Idle {
    /// Nothing is recorded unless somebody wants to know.
    on: bool,
    /// The step that is being launched: its first event, and since when.
    begun: Option<(CudaEvent, Instant)>,
    /// Those that were launched, the oldest first.
    steps: VecDeque<Around>,
    /// The end of the last one that was asked about.
    ended: Option<CudaEvent>,
}

/// Events around one step.
struct Around {
    begin: CudaEvent,
    end: CudaEvent,
    /// Where the device was there before the host had launched it all: how long the host took. By
    /// so much the device may have stood idle longer than the events say.
    late: Duration,
}

impl Idle {
    pub fn turn_on(&mut self) {
        self.on = true;
    }

    /// What is launched from now on is a step, up to [`Self::end`].
    pub fn begin(&mut self, device: &Device) -> Result<()> {
        if self.on {
            self.begun = Some((record(device)?, Instant::now()));
        }
        Ok(())
    }

    pub fn end(&mut self, device: &Device) -> Result<()> {
        if let Some((begin, since)) = self.begun.take() {
            let waited = begin.try_is_complete().during("looking for an event")?;
            let late = if waited { since.elapsed() } else { Duration::ZERO };
            self.steps.push_back(Around { begin, end: record(device)?, late });
        }
        Ok(())
    }

    /// How long the device stood idle before the oldest step that was not asked about, at most.
    /// `None` for the first. The step is done.
    pub fn before_oldest(&mut self) -> Result<Option<Duration>> {
        let Some(Around { begin, end, late }) = self.steps.pop_front() else { return Ok(None) };
        let Some(ended) = self.ended.replace(end) else { return Ok(None) };
        let ms = ended.elapsed_ms(&begin).during("timing a step")?;
        Ok(Some(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3) + late))
    }
}

fn record(device: &Device) -> Result<CudaEvent> {
    let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let event = device.context.new_event(timed).during("creating an event")?;
    event.record(&device.stream).during("recording an event")?;
    Ok(event)
}
