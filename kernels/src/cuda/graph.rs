//! A sequence of launches recorded once and started as one.

use std::collections::HashMap;
use std::time::Duration;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};

use crate::error::{Error, Result};

use super::Cuda;
use super::status::During;
use super::step::Alike;

/// Recorded launches, with the addresses that they were recorded with: the buffers have to be there
/// whenever it runs.
pub struct Graph(CudaGraph);

// SAFETY: a graph is bound to no thread, and its owner uses it from one at a time.
unsafe impl Send for Graph {}

/// Graphs kept at most; when full, all are forgotten.
const GRAPHS_MAX: usize = 256;

/// Graphs of steps, by what those have in common.
#[derive(Default)]
pub struct Graphs {
    recorded: HashMap<Alike, Graph>,
    /// Addresses that all were recorded with: of index data and of attention's scratch.
    with: (u64, [u64; 2]),
    /// Whether they serve the step at work.
    pub serve: bool,
}

impl Cuda {
    /// Forgets all graphs: something that they were recorded with has moved. One may still run.
    pub(super) fn forget_graphs(&mut self) -> Result<()> {
        if !self.graphs.recorded.is_empty() {
            self.device.synchronize()?;
            self.graphs.recorded.clear();
        }
        Ok(())
    }

    /// Forgets all graphs that were recorded with other addresses than those of now.
    fn hold_graphs(&mut self) -> Result<()> {
        let with = (self.indices.decode(), self.scratch.addresses());
        if self.graphs.with != with {
            self.forget_graphs()?;
            self.graphs.with = with;
        }
        Ok(())
    }

    /// Records what `work` launches. It must have run before, so that nothing is left to be
    /// allocated or planned.
    pub fn record<E: From<Error>>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<Graph, E> {
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

    /// Launches what a step computes, in which products may share norms: none is left half done,
    /// whatever fails.
    pub(super) fn launch_alike<E: From<Error>>(
        &mut self,
        alike: Alike,
        mut work: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.graphs.serve = true;
        let done = self.replay_or_record(alike, |cuda: &mut Self| -> Result<(), E> {
            work(cuda)?;
            Ok(cuda.finish_norm()?)
        });
        self.graphs.serve = false;
        self.factors.are_used();
        done
    }

    /// By the graph that was recorded for steps like it, if there is one. The first such step is
    /// launched piece by piece, which plans and allocates, and then recorded while the device works
    /// on it.
    fn replay_or_record<E: From<Error>>(
        &mut self,
        alike: Alike,
        mut work: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.hold_graphs()?;
        if let Some(graph) = self.graphs.recorded.get(&alike) {
            return Ok(graph.0.launch().during("starting a graph")?);
        }
        work(self)?;
        self.hold_graphs()?;
        let graph = self.record(work)?;
        if self.graphs.recorded.len() >= GRAPHS_MAX {
            self.forget_graphs()?;
        }
        self.graphs.recorded.insert(alike, graph);
        Ok(())
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
