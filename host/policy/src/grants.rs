//! What a plugin may import, and what an operator writes to allow it.

use config::settings::Allow;
use wasmtime::component::{HasSelf, Linker};

use crate::bindings::drystone::policy as wit;
use crate::guest::Guest;
use crate::load::LoadError;

type Wire = fn(&mut Linker<Guest>) -> wasmtime::Result<()>;

/// One interface of the host.
struct Grant {
    interface: &'static str,
    granted: fn(&Allow) -> bool,
    /// What stands in `allow`.
    remedy: &'static str,
    wire: Wire,
}

/// Wires one generated interface to [`Guest`].
macro_rules! wire {
    ($interface:ident) => {
        |linker| wit::$interface::add_to_linker::<_, HasSelf<_>>(linker, |guest| guest)
    };
}

/// All of them. `types` has no functions, but guests may import it by name.
static GRANTS: [Grant; 12] = [
    Grant { interface: "types", granted: |_| true, remedy: "", wire: wire!(types) },
    Grant { interface: "log", granted: |_| true, remedy: "", wire: wire!(log) },
    Grant { interface: "answer", granted: |_| true, remedy: "", wire: wire!(answer) },
    Grant {
        interface: "clock",
        granted: |allow| allow.clock,
        remedy: "clock = true",
        wire: wire!(clock),
    },
    Grant {
        interface: "random",
        granted: |allow| allow.random,
        remedy: "random = true",
        wire: wire!(random),
    },
    Grant {
        interface: "metrics",
        granted: |allow| allow.metrics,
        remedy: "metrics = true",
        wire: wire!(metrics),
    },
    Grant {
        interface: "headers",
        granted: |allow| !allow.headers.is_empty(),
        remedy: "headers = [\"x-tenant\"]",
        wire: wire!(headers),
    },
    Grant {
        interface: "messages",
        granted: |allow| allow.messages,
        remedy: "messages = true",
        wire: wire!(messages),
    },
    Grant {
        interface: "text",
        granted: |allow| allow.text,
        remedy: "text = true",
        wire: wire!(text),
    },
    Grant {
        interface: "kv",
        granted: |allow| allow.kv_bytes > 0,
        remedy: "kv_kib = 256",
        wire: wire!(kv),
    },
    Grant {
        interface: "adapters",
        granted: |allow| allow.adapters,
        remedy: "adapters = true",
        wire: wire!(adapters),
    },
    Grant {
        interface: "replicas",
        granted: |allow| allow.replicas,
        remedy: "replicas = true",
        wire: wire!(replicas),
    },
];

/// Refuses the interface `import` unless `allow` grants it.
pub(crate) fn check(import: &str, allow: &Allow) -> Result<(), LoadError> {
    let name = format!("drystone:policy/{import}");
    match GRANTS.iter().find(|grant| grant.interface == import) {
        None => Err(LoadError::Unknown(name)),
        Some(grant) if (grant.granted)(allow) => Ok(()),
        Some(grant) => Err(LoadError::NotGranted { import: name, remedy: grant.remedy }),
    }
}

/// Adds what `allow` grants, and nothing else.
pub(crate) fn wire(linker: &mut Linker<Guest>, allow: &Allow) -> wasmtime::Result<()> {
    let granted = GRANTS.iter().filter(|grant| (grant.granted)(allow));
    granted.map(|grant| grant.wire).try_for_each(|wire| wire(linker))?;
    if allow.wasi { wasmtime_wasi::p2::add_to_linker_async(linker) } else { Ok(()) }
}

/// Everything there is, for tools that look at components.
pub(crate) fn everything() -> Allow {
    const KV: usize = 1 << 20;
    Allow {
        headers: vec!["*".to_owned()],
        messages: true,
        text: true,
        kv_bytes: KV,
        clock: true,
        random: true,
        metrics: true,
        adapters: true,
        replicas: true,
        wasi: true,
    }
}
