//! Why a guest gave no answer, and what its caller is told then.

use contract::policy::verdict::Denied;
use wasmtime::{PoolConcurrencyLimitError, Trap};

use crate::bounds::MemoryExhausted;

/// Why a guest gave no answer. The texts are for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The guest's code ended abnormally.
    #[error("it trapped: {0}")]
    Trap(String),
    /// It ran for longer than `limits.cpu_ms`.
    #[error("it ran into its time limit")]
    Timeout,
    /// It wanted more than `limits.memory_mib`, or too many tables or instances.
    #[error("it ran into its memory limit")]
    Memory,
    /// `limits.concurrency` calls or `policy.instances_max` instances are there already.
    #[error("too many of its calls are under way")]
    Concurrency,
    /// One call passed more than `limits.host_copy_kib` to the host.
    #[error("it passed too much to the host in one call")]
    HostCopy,
    /// Its answer is outside of what the hook allows.
    #[error("its answer is not valid: {0}")]
    Invalid(String),
    /// It failed too often lately.
    #[error("it is quarantined")]
    Quarantined,
    /// A new instance could not be made, or its `init` refused.
    #[error("it did not start: {0}")]
    Start(String),
}

impl Failure {
    /// The label that metrics use.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Concurrency => "concurrency",
            Self::HostCopy => "host_copy",
            Self::Invalid(_) => "invalid",
            Self::Quarantined => "quarantined",
            Self::Start(_) => "start",
        }
    }

    /// Whether the guest itself did wrong, which counts towards its quarantine.
    pub(crate) const fn is_its_own(&self) -> bool {
        !matches!(self, Self::Concurrency | Self::Quarantined)
    }

    /// What the caller is told where the request may not go on. Nothing of the plugin shows.
    pub(crate) fn refusal(&self) -> Denied {
        const MESSAGE: &str = "a policy of this server could not decide about the request";
        let passing = !self.is_its_own();
        Denied {
            retry_after_s: passing.then_some(1),
            ..Denied::new(if passing { 503 } else { 500 }, "policy_failed", MESSAGE)
        }
    }
}

/// What stands behind an error of Wasmtime.
impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        if error.is::<MemoryExhausted>() {
            return Self::Memory;
        }
        if error.is::<PoolConcurrencyLimitError>() {
            return Self::Concurrency;
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Timeout,
            Some(trap) => Self::Trap(described(*trap, &error)),
            // Wasmtime has no type for this one.
            None if format!("{error:#}").contains("fuel allocated for hostcalls") => Self::HostCopy,
            None => Self::Trap(format!("{error:#}")),
        }
    }
}

/// The trap, and the guest's functions that led to it.
fn described(trap: Trap, error: &wasmtime::Error) -> String {
    const FRAMES: usize = 8;
    let frames = error.downcast_ref::<wasmtime::WasmBacktrace>();
    let names = frames.into_iter().flat_map(|trace| trace.frames());
    let name = |frame: &wasmtime::FrameInfo| {
        frame.func_name().map(|name| format!("{:#}", rustc_demangle::demangle(name)))
    };
    let names: Vec<_> = names.filter_map(name).take(FRAMES).collect();
    if names.is_empty() { trap.to_string() } else { format!("{trap} in {}", names.join(" < ")) }
}
