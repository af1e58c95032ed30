//! The Wasm engine of a server, and the clock that interrupts its guests.

use std::time::Duration;

use wasmtime::{Config, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Guests give way to other requests this often, and are ended at a multiple of it.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Memory that a slot of the pool keeps when its instance is gone, so that the next one starts
/// without page faults. Policies rarely use more.
const KEEP_RESIDENT: usize = 2 << 20;
const TABLE_KEEP_RESIDENT: usize = 64 << 10;
/// `wit-component` makes a component of the guest's module, a shim, its fix-up, and adapters.
const CORE_INSTANCES: u32 = 6;
const TABLES: u32 = 3;

/// An engine for `instances_max` instances at once. At each tick of its clock it calls `on_tick`.
///
/// They come from a pool that reserves their address space ahead. Where that space is not to be
/// had, instances are mapped one by one: slower to start, otherwise the same.
pub(crate) fn serving(
    instances_max: u32,
    on_tick: impl Fn() + Send + 'static,
) -> wasmtime::Result<Engine> {
    let mut config = common();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances_max)));
    let engine = Engine::new(&config).or_else(|error| {
        tracing::warn!("policy instances are mapped one by one, for want of a pool: {error:#}");
        Engine::new(&common())
    })?;
    tick(engine.weak(), on_tick)?;
    Ok(engine)
}

/// An engine that counts what guests do. It is slower, and for tools only.
pub(crate) fn measuring() -> wasmtime::Result<Engine> {
    let engine = Engine::new(common().consume_fuel(true))?;
    tick(engine.weak(), || {})?;
    Ok(engine)
}

fn common() -> Config {
    let mut config = Config::new();
    // Concurrency within one instance is not part of `drystone:policy`, and costs every call.
    config.epoch_interruption(true).concurrency_support(false);
    // For native debuggers; a guest's own backtrace does not need it, and it takes time to make.
    config.native_unwind_info(false);
    config
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(TABLES))
        .total_stacks(instances)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(TABLE_KEEP_RESIDENT);
    pool
}

/// Ticks until the engine is gone.
fn tick(engine: EngineWeak, on_tick: impl Fn() + Send + 'static) -> wasmtime::Result<()> {
    let ticks = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            on_tick();
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new().name("policy-ticks".to_owned()).spawn(ticks)?;
    Ok(())
}
