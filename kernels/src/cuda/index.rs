//! Index data on its way to the device: lists of words, and memory that is used again.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::error::Result;

use super::memory::Memory;
use super::upload::{Pinned, bytes_of};

/// Room for the steps that graphs serve, to begin with: 256 sequences of 4,096 positions.
const DECODE_BYTES: usize = 512 << 10;

/// Lists of words, each at a multiple of 16 bytes.
#[derive(Default)]
pub struct Words(pub Vec<u32>);

impl Words {
    /// Where the list starts.
    pub fn add(&mut self, list: &[u32]) -> usize {
        let start = self.0.len().next_multiple_of(4);
        self.0.resize(start, 0);
        self.0.extend_from_slice(list);
        start
    }

    pub fn add_all(&mut self, list: impl Iterator<Item = u32>) -> usize {
        let start = self.add(&[]);
        self.0.extend(list);
        start
    }

    /// The list takes `len` words; what it lacks is `padding`.
    pub fn add_padded(&mut self, list: &[u32], len: usize, padding: u32) -> usize {
        let start = self.add(list);
        self.0.resize(start + len, padding);
        start
    }
}

/// Index data on the device, and the pinned memory that it came through.
pub struct Indices {
    pub device: Memory,
    host: Pinned,
}

impl Indices {
    fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self> {
        let device = Memory::zeroed(stream, bytes, "index data")?;
        Ok(Self { device, host: Pinned::new(stream.context(), bytes)? })
    }

    fn send(&mut self, stream: &CudaStream, bytes: &[u8]) -> Result<()> {
        send(&mut self.host, stream, bytes, &self.device)
    }
}

fn send(host: &mut Pinned, stream: &CudaStream, bytes: &[u8], to: &Memory) -> Result<()> {
    host.bytes()?[..bytes.len()].copy_from_slice(bytes);
    host.send(stream, bytes.len(), to.address())
}

/// Where all steps lie that graphs serve. One is written to pinned memory while the one before may
/// still wait to be copied; on the device it takes its place once that has been computed.
struct Decode {
    device: Memory,
    /// The next to be used first.
    hosts: [Pinned; 2],
}

impl Decode {
    fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self> {
        let host = || Pinned::new(stream.context(), bytes);
        let device = Memory::zeroed(stream, bytes, "index data")?;
        Ok(Self { device, hosts: [host()?, host()?] })
    }

    fn send(&mut self, stream: &CudaStream, bytes: &[u8]) -> Result<()> {
        self.hosts.swap(0, 1);
        send(&mut self.hosts[0], stream, bytes, &self.device)
    }

    /// Waits until nothing is copied any more: then it can go.
    fn settle(&mut self) -> Result<()> {
        self.hosts.iter_mut().try_for_each(|host| host.bytes().map(drop))
    }
}

/// Index memory that is used again when nobody holds it any more, so that a batch like the last one
/// finds its data at the same addresses.
pub struct IndexPool {
    stream: Arc<CudaStream>,
    held: Vec<Arc<Indices>>,
    decode: Decode,
}

impl IndexPool {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let decode = Decode::new(stream, DECODE_BYTES)?;
        Ok(Self { stream: Arc::clone(stream), held: Vec::new(), decode })
    }

    /// Copies `words` to where steps that graphs serve lie, and says where that is.
    pub fn upload_decode(&mut self, words: &[u32]) -> Result<u64> {
        let bytes = bytes_of(words);
        if bytes.len() > self.decode.device.bytes() {
            self.decode.settle()?;
            self.decode = Decode::new(&self.stream, bytes.len().next_power_of_two())?;
        }
        self.decode.send(&self.stream, bytes)?;
        Ok(self.decode.device.address())
    }

    /// Where steps that graphs serve lie: graphs of another place are worth nothing.
    pub fn decode(&self) -> u64 {
        self.decode.device.address()
    }

    /// Copies `words` to memory that is the caller's until it drops it.
    pub fn upload(&mut self, words: &[u32]) -> Result<Arc<Indices>> {
        let bytes = bytes_of(words);
        let at = self.free(bytes.len())?;
        let indices = Arc::get_mut(&mut self.held[at]).expect("nobody holds it: this is a bug");
        indices.send(&self.stream, bytes)?;
        Ok(Arc::clone(&self.held[at]))
    }

    /// One that nobody holds and that has room; made if there is none.
    fn free(&mut self, bytes: usize) -> Result<usize> {
        let free = self.held.iter_mut().position(|held| Arc::get_mut(held).is_some());
        let at = free.unwrap_or(self.held.len());
        if free.is_some_and(|at| self.held[at].host.len() >= bytes) {
            return Ok(at);
        }
        if let Some(small) = self.held.get_mut(at).and_then(Arc::get_mut) {
            // It may still be copied from.
            small.host.bytes()?;
        }
        let room = bytes.next_power_of_two().max(4096);
        let made = Arc::new(Indices::new(&self.stream, room)?);
        if at == self.held.len() {
            self.held.push(made);
        } else {
            self.held[at] = made;
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_start_where_16_byte_loads_may() {
        let mut words = Words::default();
        assert_eq!([words.add(&[1, 2, 3, 4, 5]), words.add(&[6]), words.add(&[7])], [0, 8, 12]);
        assert_eq!(words.add_padded(&[8], 6, 9), 16);
        assert_eq!(words.0[16..], [8, 9, 9, 9, 9, 9]);
    }
}
