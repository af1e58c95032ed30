//! A sequence of launches recorded once and started as one.

use std::time::Duration;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};

use crate::error::{Error, Result};

use super::Cuda;
use super::status::During;

/// Recorded launches, with the addresses that they were recorded with: the buffers have to be there
/// whenever it runs.
pub struct Graph(CudaGraph);

impl Cuda {
    /// Records what `work` launches. It must have run before, so that nothing is left to be
    /// allocated or planned.
    pub fn record(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<Graph> {
        let stream = &self.device.stream;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).during("starting to record")?;
        let worked = work(self);
        let none = CUgraphInstantiate_flags(0);
        let recorded = self.device.stream.end_capture(none).during("recording");
        worked?;
        let graph = recorded?.ok_or_else(|| Error::Device("nothing was recorded".to_owned()))?;
        graph.upload().during("bringing a graph to the device")?;
        Ok(Graph(graph))
    }

    /// Runs a graph `times` times, and says how long the device took.
    pub fn replay(&mut self, graph: &Graph, times: usize) -> Result<Duration> {
        let stream = &self.device.stream;
        let event = || {
            let event = self.device.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            event.during("creating an event")
        };
        let (start, end) = (event()?, event()?);
        start.record(stream).during("recording an event")?;
        for _ in 0..times {
            graph.0.launch().during("starting a graph")?;
        }
        end.record(stream).during("recording an event")?;
        let ms = start.elapsed_ms(&end).during("timing a graph")?;
        Ok(Duration::from_secs_f64(f64::from(ms) / 1e3))
    }
}
