//! One rank's hold on a device: context, stream and kernels, and how a kernel is launched.

use std::marker::PhantomData;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchConfig, CUshared_carveout,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream};

use crate::error::{Error, Result};
use crate::ops::DeviceMemory;

use super::kernels::Kernels;
use super::program::{Programs, Target};
use super::status::During;

/// What every launcher needs. Ranks on one device share its context; each has a stream of its own.
pub struct Device {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub kernels: Kernels,
    /// Element type of activations, weights, caches and adapters.
    pub dtype: DType,
    /// Multiprocessors.
    pub processors: usize,
    /// Whether a kernel may start before the one ahead of it has ended (`chain.cuh`).
    chains: bool,
}

impl Device {
    pub fn open(ordinal: usize, dtype: DType, cache: Option<&Path>) -> Result<Self> {
        let context = CudaContext::new(ordinal).during("opening the device")?;
        // SAFETY: all work of a rank is on one stream, in order; nothing waits for cudarc's events.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability().during("asking for its capability")?;
        let shared = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = context.attribute(shared).during("asking for its shared memory")?;
        let target = Target::new(capability, shared as usize, dtype);
        let kernels = Kernels::new(&Programs::load(&context, &target, cache)?)?;
        let stream = context.new_stream().during("creating a stream")?;
        let processors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = context.attribute(processors).during("counting multiprocessors")?;
        let (processors, chains) = (processors as usize, capability >= (9, 0));
        Ok(Self { context, stream, kernels, dtype, processors, chains })
    }

    /// Waits for all that was launched, so that what was freed counts as free.
    pub fn memory(&self) -> Result<DeviceMemory> {
        self.synchronize()?;
        let (free, total) = self.context.mem_get_info().during("asking for free memory")?;
        let uuid = self.context.uuid().during("asking for its identity")?;
        let identity = uuid.bytes.iter().fold(0_u32, |mixed, byte| {
            mixed.wrapping_mul(31).wrapping_add(u32::from(byte.cast_unsigned()))
        });
        Ok(DeviceMemory {
            device: format!("device {} ({})", self.context.ordinal(), self.name()),
            identity: identity % (1 << 24),
            total: total as u64,
            free: free as u64,
        })
    }

    /// As the driver calls it.
    fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "without a name".to_owned())
    }

    /// Puts one launch on the stream. A grid with no blocks is no work.
    pub fn launch<P: Copy>(&self, kernel: &Kernel<P>, grid: Grid, params: &P) -> Result<()> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 || grid.blocks.2 == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().during("binding its context")?;
        let mut arguments = [ptr::from_ref(params).cast_mut().cast()];
        let mut early = early();
        let config = CUlaunchConfig {
            hStream: self.stream.cu_stream(),
            attrs: &raw mut early,
            numAttrs: u32::from(self.chains),
            ..grid.config()
        };
        let function = kernel.function.cu_function();
        // SAFETY: the kernel takes one struct by value, and `Kernel` says which. Its pointers are
        // to memory that lives until the stream has passed, as all is freed in stream order. Every
        // kernel waits for those before it, as `chain.cuh` says.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        launched.result().during(kernel.name)
    }

    /// Waits for all that was launched.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().during("finishing what was launched")
    }
}

/// Lets a launch begin before the one ahead of it has ended.
fn early() -> CUlaunchAttribute {
    CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

/// How many threads a launch has.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub blocks: (u32, u32, u32),
    pub threads: u32,
    /// Shared memory beyond what the kernel declares.
    pub shared_bytes: u32,
}

/// As many entries at a time as the parameters of a launch have room for: `launch` gets them, and
/// those that exist.
pub fn in_launches<E: Copy + Default, const ROOM: usize>(
    entries: &[E],
    launch: impl Fn([E; ROOM], &[E]) -> Result<()>,
) -> Result<()> {
    entries.chunks(ROOM).try_for_each(|some| {
        let mut room = [E::default(); ROOM];
        room[..some.len()].copy_from_slice(some);
        launch(room, some)
    })
}

impl Grid {
    /// One block of `threads` for each of `blocks`.
    pub fn of(blocks: usize, threads: u32) -> Self {
        Self::of_3((blocks, 1, 1), threads)
    }

    pub fn of_3(blocks: (usize, usize, usize), threads: u32) -> Self {
        let blocks = (to_u32(blocks.0), to_u32(blocks.1), to_u32(blocks.2));
        Self { blocks, threads, shared_bytes: 0 }
    }

    pub fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: to_u32(bytes), ..self }
    }

    /// On the default stream and without attributes.
    fn config(&self) -> CUlaunchConfig {
        CUlaunchConfig {
            gridDimX: self.blocks.0,
            gridDimY: self.blocks.1,
            gridDimZ: self.blocks.2,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: ptr::null_mut(),
            attrs: ptr::null_mut(),
            numAttrs: 0,
        }
    }
}

/// Threads that handle `elements`, 8 each: whole warps, at most `most`.
pub fn threads_for(elements: usize, most: u32) -> u32 {
    to_u32(elements.div_ceil(8).next_multiple_of(32)).min(most)
}

/// A size as kernels take it.
pub fn to_u32(size: usize) -> u32 {
    u32::try_from(size).expect("sizes of one step are below 2^32: this is a bug")
}

/// All of what shared memory and L1 cache share that shared memory can have.
const MOST_SHARED: i32 = CUshared_carveout::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32;

/// A kernel and the struct that it takes.
pub struct Kernel<P> {
    name: &'static str,
    function: CudaFunction,
    params: PhantomData<fn(P)>,
}

impl<P> Kernel<P> {
    /// The kernel `name` of the source file `file`.
    pub fn new(programs: &Programs, file: &'static str, name: &'static str) -> Result<Self> {
        let module = programs.module(file);
        let module = module.ok_or_else(|| Error::Device(format!("{file}.cu is not compiled")))?;
        let function = module.load_function(name).during(name)?;
        Ok(Self { name, function, params: PhantomData })
    }

    /// Blocks of `threads` that run on one multiprocessor at once.
    pub fn blocks_of_processor(&self, threads: u32) -> Result<usize> {
        let blocks = self.function.occupancy_max_active_blocks_per_multiprocessor(threads, 0, None);
        Ok(blocks.during(self.name)? as usize)
    }

    /// Has multiprocessors set up for it with all of the shared memory there can be, as for kernels
    /// with large tiles. One is set up anew only while nothing runs on it: two kernels that want
    /// it differently are never beside each other, whatever room there is.
    pub fn prefer_shared(self) -> Result<Self> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        self.function.set_attribute(attribute, MOST_SHARED).during(self.name)?;
        Ok(self)
    }

    /// Allows launches with this much dynamic shared memory.
    pub fn allow_shared(self, bytes: usize) -> Result<Self> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(bytes).expect("shared memory is small: this is a bug");
        self.function.set_attribute(attribute, bytes).during(self.name)?;
        Ok(self)
    }
}
