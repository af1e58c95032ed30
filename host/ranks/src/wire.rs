//! What processes of one group tell each other, as bytes: numbers little-endian, lists and texts
//! behind their length.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use contract::adapter::{Exchange, Generation, GenerationId, Kind, LayerPairs, LocalPair};
use contract::adapter::{PairShape, Slot};
use contract::sampling::Sampling;
use contract::step::{Batch, BlockId, Choice, Draw, Pending, Query, Segment, Span};
use kernels::cuda::NcclName;

use crate::worker::{Command, Failure};

/// More than the factors of any adapter; what is longer is no message of ours.
const BYTES_MAX: u64 = 64 << 30;

/// A value that goes from process to process.
pub trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);

    /// Takes the value off the front of `from`; `None` if it does not start with one.
    fn get(from: &mut &[u8]) -> Option<Self>;
}

/// Sends one value.
pub fn send(to: &mut impl Write, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
    let mut bytes = vec![0; size_of::<u64>()];
    put(&mut bytes);
    let length = (bytes.len() - size_of::<u64>()) as u64;
    bytes[..size_of::<u64>()].copy_from_slice(&length.to_le_bytes());
    to.write_all(&bytes)
}

/// Waits for one value.
pub fn receive<T: Wire>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; size_of::<u64>()];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "this is no message of drystone's");
    if length > BYTES_MAX {
        return Err(garbled());
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let value = T::get(&mut rest).filter(|_| rest.is_empty() && bytes.len() as u64 == length);
    value.ok_or_else(garbled)
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Wire for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn get(from: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(Self::from_le_bytes(*bytes))
            }
        }
    )+};
}

numbers!(u8, u32, u64, f32);

/// Structs, by their fields.
macro_rules! fields {
    ($($name:ident { $($field:ident),+ })+) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)+
            }

            fn get(from: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: Wire::get(from)?),+ })
            }
        }
    )+};
}

fields! {
    Batch { tokens, pending, positions, spans, blocks, segments, queries, history }
    Pending { row, query }
    Span { rows, blocks }
    Segment { slot, rows }
    Query { row, choice, top_logprobs }
    Draw { sampling, seed, index, prompt, output }
    Sampling {
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
        logit_bias, stop_tokens, min_tokens
    }
    LocalPair { shape, a, b }
    PairShape { input, output, shrink_rank, expand_rank, a_blocks, b_blocks, exchange }
    Generation { id, name, kind, lora_rank, ranks }
}

impl Wire for usize {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u64).put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Self::try_from(u64::get(from)?).ok()
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.len().put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        let length = usize::get(from)?;
        // Room is made as values come: a length alone allocates nothing.
        (0..length).map(|_| T::get(from)).collect()
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|value| value.put(out));
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        let values: Option<Vec<T>> = (0..N).map(|_| T::get(from)).collect();
        values?.try_into().ok()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(self.is_some()).put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        match u8::get(from)? {
            0 => Some(None),
            1 => Some(Some(T::get(from)?)),
            _ => None,
        }
    }
}

impl<T: Wire> Wire for Arc<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(Self::new(T::get(from)?))
    }
}

impl<T: Wire> Wire for Range<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.start.put(out);
        self.end.put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(T::get(from)?..T::get(from)?)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Some((A::get(from)?, B::get(from)?))
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        self.len().put(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        let length = usize::get(from)?;
        let (text, rest) = from.split_at_checked(length)?;
        *from = rest;
        Self::from_utf8(text.to_vec()).ok()
    }
}

impl<T: Wire> Wire for Result<T, String> {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(self.is_ok()).put(out);
        match self {
            Ok(value) => value.put(out),
            Err(why) => why.put(out),
        }
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        match u8::get(from)? {
            0 => Some(Err(String::get(from)?)),
            1 => Some(Ok(T::get(from)?)),
            _ => None,
        }
    }
}

impl Wire for NcclName {
    fn put(&self, out: &mut Vec<u8>) {
        self.bytes().put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Wire::get(from).map(Self::from_bytes)
    }
}

impl Wire for BlockId {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        u32::get(from).map(Self)
    }
}

impl Wire for Slot {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        u32::get(from).map(Self)
    }
}

impl Wire for GenerationId {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Wire::get(from).map(Self)
    }
}

impl Wire for Choice {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Given(token) => (0_u8, *token).put(out),
            Self::Draw(draw) => {
                1_u8.put(out);
                draw.put(out);
            }
        }
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        match u8::get(from)? {
            0 => Some(Self::Given(u32::get(from)?)),
            1 => Some(Self::Draw(Draw::get(from)?)),
            _ => None,
        }
    }
}

impl Wire for Kind {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Plain => 0_usize.put(out),
            Self::BlockDiagonal { blocks } => blocks.put(out),
        }
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(match usize::get(from)? {
            0 => Self::Plain,
            blocks => Self::BlockDiagonal { blocks },
        })
    }
}

impl Wire for Exchange {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u8).put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        let all = [Self::None, Self::Gather, Self::Reduce];
        let tag = u8::get(from)?;
        all.into_iter().find(|exchange| *exchange as u8 == tag)
    }
}

impl Wire for Failure {
    fn put(&self, out: &mut Vec<u8>) {
        let (tag, message) = match self {
            Self::Refused(message) => (0_u8, message),
            Self::Follower(message) => (1, message),
            Self::Dead(message) => (2, message),
        };
        tag.put(out);
        message.put(out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        let kind = match u8::get(from)? {
            0 => Self::Refused,
            1 => Self::Follower,
            2 => Self::Dead,
            _ => return None,
        };
        String::get(from).map(kind)
    }
}

impl Command {
    /// As much of a command as processes with these ranks need to know.
    pub fn put_part(&self, ranks: &Range<usize>, out: &mut Vec<u8>) {
        match self {
            Self::Run(batch) => {
                0_u8.put(out);
                batch.put(out);
            }
            Self::Load(slot, generation) => {
                (1_u8, *slot).put(out);
                put_part(generation, ranks, out);
            }
            Self::Unload(slot) => (2_u8, *slot).put(out),
            Self::TimeIdle => 3_u8.put(out),
        }
    }
}

impl Wire for Command {
    fn put(&self, out: &mut Vec<u8>) {
        self.put_part(&(0..usize::MAX), out);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        match u8::get(from)? {
            0 => Some(Self::Run(Wire::get(from)?)),
            1 => Some(Self::Load(Wire::get(from)?, Wire::get(from)?)),
            2 => Some(Self::Unload(Wire::get(from)?)),
            3 => Some(Self::TimeIdle),
            _ => None,
        }
    }
}

/// A generation without the pairs of ranks that are not among `ranks`, who need not know them.
pub fn put_part(generation: &Generation, ranks: &Range<usize>, out: &mut Vec<u8>) {
    generation.id.put(out);
    generation.name.put(out);
    generation.kind.put(out);
    generation.lora_rank.put(out);
    generation.ranks.len().put(out);
    for (rank, layers) in generation.ranks.iter().enumerate() {
        match ranks.contains(&rank) {
            true => layers.put(out),
            false => vec![LayerPairs::default(); layers.len()].put(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Wire>(value: &T) -> T {
        let mut bytes = Vec::new();
        send(&mut bytes, |out| value.put(out)).unwrap();
        receive(&mut bytes.as_slice()).unwrap()
    }

    fn batch() -> Batch {
        let draw = Draw {
            sampling: Arc::new(Sampling { logit_bias: vec![(3, -0.5)], ..Sampling::default() }),
            seed: u64::MAX,
            index: 7,
            prompt: 0..2,
            output: 2..3,
        };
        Batch {
            tokens: vec![1, 2, 0],
            pending: vec![Pending { row: 2, query: 1 }],
            positions: vec![0, 1, 9],
            spans: vec![Span { rows: 0..2, blocks: 0..1 }, Span { rows: 2..3, blocks: 1..2 }],
            blocks: vec![BlockId(4), BlockId(5)],
            segments: vec![
                Segment { slot: None, rows: 0..2 },
                Segment { slot: Some(Slot(6)), rows: 2..3 },
            ],
            queries: vec![
                Query { row: 1, choice: Choice::Given(8), top_logprobs: Some(2) },
                Query { row: 2, choice: Choice::Draw(draw), top_logprobs: None },
            ],
            history: vec![1, 2, 3],
        }
    }

    fn generation() -> Generation {
        let pair = |value| LocalPair {
            shape: PairShape {
                input: 2,
                output: 0..1,
                shrink_rank: 1,
                expand_rank: 2,
                a_blocks: 1,
                b_blocks: 1,
                exchange: Exchange::Gather,
            },
            a: vec![value, f32::MIN_POSITIVE],
            b: vec![-0.0, value],
        };
        let layer =
            |value| -> LayerPairs { std::array::from_fn(|at| (at == 3).then(|| pair(value))) };
        Generation {
            id: GenerationId([9; 32]),
            name: "größer".to_owned(),
            kind: Kind::BlockDiagonal { blocks: 2 },
            lora_rank: 2,
            ranks: vec![vec![layer(1.0), layer(2.0)], vec![layer(3.0), layer(4.0)]],
        }
    }

    #[test]
    fn what_is_sent_is_received() {
        assert_eq!(format!("{:?}", round_trip(&batch())), format!("{:?}", batch()));
        let generation = generation();
        assert_eq!(format!("{:?}", round_trip(&generation)), format!("{generation:?}"));
    }

    #[test]
    fn a_rank_gets_its_own_pairs_only() {
        let generation = generation();
        let mut bytes = Vec::new();
        send(&mut bytes, |out| put_part(&generation, &(1..2), out)).unwrap();
        let part: Generation = receive(&mut bytes.as_slice()).unwrap();
        assert_eq!(part.ranks[1], generation.ranks[1]);
        assert_eq!(part.ranks[0].len(), 2);
        assert!(part.ranks[0].iter().flatten().all(Option::is_none));
        assert_eq!((part.id, part.name), (generation.id, generation.name));
    }

    #[test]
    fn what_is_cut_short_or_changed_is_no_message() {
        let mut bytes = Vec::new();
        send(&mut bytes, |out| batch().put(out)).unwrap();
        for length in 0..bytes.len() {
            assert!(receive::<Batch>(&mut &bytes[..length]).is_err(), "{length} bytes");
        }
        let mut longer = bytes.clone();
        longer[0] += 1;
        longer.push(0);
        assert!(receive::<Batch>(&mut longer.as_slice()).is_err());
        assert!(receive::<Batch>(&mut [0xff; 64].as_slice()).is_err());
        // A list that says it is long: nothing is allocated for it.
        let mut list = Vec::new();
        send(&mut list, |out| u64::MAX.put(out)).unwrap();
        assert!(receive::<Vec<u32>>(&mut list.as_slice()).is_err());
    }
}
