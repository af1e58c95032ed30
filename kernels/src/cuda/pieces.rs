//! A weight in pieces that several threads copy at once.
//!
//! Bytes of a mapped file come a page at a time, to whichever thread touches them first, and one
//! thread takes longer over that than the bus over carrying them on.

use contract::tensor::DType;
use rayon::prelude::*;

use crate::element;
use crate::ops::WeightView;

/// Bytes of a piece before its elements change, at most.
const PIECE_BYTES: usize = 256 << 10;

/// Below as many bytes other threads are not worth waking.
const SHARED_BYTES_MIN: usize = 1 << 20;

/// What is left of a weight. Bytes for it that several threads write are handed in as they come.
pub struct Pieces<'a> {
    part: WeightView<'a>,
    /// Where the next piece starts.
    row: usize,
    column: usize,
    /// Elements of a piece, at most.
    elements: usize,
    types: Types,
}

/// What becomes of elements: rounded to `rounded`, and kept as `held`.
#[derive(Clone, Copy)]
pub struct Types {
    pub rounded: DType,
    pub held: DType,
}

impl<'a> Pieces<'a> {
    /// All of a view that has bytes.
    pub fn new(part: WeightView<'a>, types: Types) -> Self {
        let elements = PIECE_BYTES / part.dtype.bytes();
        Self { part: in_one_row(part), row: 0, column: 0, elements, types }
    }

    /// Fills `room` from its start with whole pieces, as many as there are and fit; how many bytes.
    pub fn fill(&mut self, room: &mut [u8]) -> usize {
        let (mut tasks, mut left, whole) = (Vec::new(), room, self.types.held.bytes());
        while let Some(from) = self.next() {
            let bytes = from.len() / self.part.dtype.bytes() * whole;
            let Some((to, rest)) = left.split_at_mut_checked(bytes) else { break };
            tasks.push((from, to));
            left = rest;
            self.take(from.len());
        }
        let filled = tasks.iter().map(|(_, to)| to.len()).sum();
        let (from, types) = (self.part.dtype, self.types);
        match filled < SHARED_BYTES_MIN {
            true => tasks.into_iter().for_each(|(bytes, to)| types.convert(from, bytes, to)),
            false => tasks.into_par_iter().for_each(|(bytes, to)| types.convert(from, bytes, to)),
        }
        filled
    }

    /// Whether all is filled in.
    pub fn is_empty(&self) -> bool {
        self.next().is_none()
    }

    fn next(&self) -> Option<&'a [u8]> {
        let of_row = (self.row < self.part.rows).then(|| self.part.row(self.row))??;
        let element = self.part.dtype.bytes();
        let rest = &of_row[self.column * element..];
        let piece = &rest[..rest.len().min(self.elements * element)];
        (!piece.is_empty()).then_some(piece)
    }

    fn take(&mut self, bytes: usize) {
        self.column += bytes / self.part.dtype.bytes();
        if self.column == self.part.cols {
            (self.row, self.column) = (self.row + 1, 0);
        }
    }
}

impl Types {
    /// Elements of type `from` as they are held.
    fn convert(self, from: DType, bytes: &[u8], to: &mut [u8]) {
        let Self { rounded, held } = self;
        if from == held && (rounded == held || rounded == DType::F32) {
            return to.copy_from_slice(bytes);
        }
        let values = element::values(from, bytes).zip(to.chunks_exact_mut(held.bytes()));
        match rounded == held {
            true => values.for_each(|(value, to)| element::put(held, value, to)),
            false => values.for_each(|(value, to)| {
                element::put(held, element::round(rounded, value), to);
            }),
        }
    }
}

/// Rows that follow each other without a gap are one.
fn in_one_row(part: WeightView<'_>) -> WeightView<'_> {
    if part.stride != part.cols || part.bytes.is_empty() {
        return part;
    }
    let cols = part.rows * part.cols;
    WeightView { rows: 1, cols, stride: cols, ..part }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 70 columns of which the first 60 are wanted, or all.
    fn bytes(dtype: DType, rows: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        (0..rows * 70).for_each(|i| element::write(dtype, i as f32 / 7.0 - 300.0, &mut bytes));
        bytes
    }

    fn view(dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> WeightView<'_> {
        WeightView { dtype, rows, cols, stride: 70, bytes }
    }

    /// What pieces make of a view, in rooms that are not a multiple of anything.
    fn filled(part: WeightView<'_>, types: Types, elements: usize, room: usize) -> Vec<u8> {
        let mut pieces = Pieces { elements, ..Pieces::new(part, types) };
        let mut all = Vec::new();
        while !pieces.is_empty() {
            let mut room = vec![0; room];
            let filled = pieces.fill(&mut room);
            assert!(filled > 0, "a piece fits");
            all.extend_from_slice(&room[..filled]);
        }
        all
    }

    fn expected(part: WeightView<'_>, Types { rounded, held }: Types) -> Vec<u8> {
        let mut all = Vec::new();
        for row in (0..part.rows).filter_map(|row| part.row(row)) {
            let values = element::values(part.dtype, row).map(|v| element::round(rounded, v));
            values.for_each(|value| element::write(held, value, &mut all));
        }
        all
    }

    #[test]
    fn pieces_are_the_weight_whatever_its_cut_and_types() {
        let all = [DType::F32, DType::F16, DType::Bf16];
        for (from, rounded, held) in
            all.into_iter().flat_map(|a| all.map(|b| all.map(|c| (a, b, c)))).flatten()
        {
            let (bytes, types) = (bytes(from, 9), Types { rounded, held });
            for cols in [60, 70] {
                let part = view(from, 9, cols, &bytes);
                let wanted = expected(part, types);
                assert!(filled(part, types, 50, 333) == wanted, "{from} {rounded} {held} {cols}");
            }
        }
    }

    #[test]
    fn large_weights_are_shared_among_threads() {
        let (bytes, types) =
            (bytes(DType::F32, 9000), Types { rounded: DType::Bf16, held: DType::Bf16 });
        for cols in [60, 70] {
            let part = view(DType::F32, 9000, cols, &bytes);
            let mut room = vec![0; 9000 * cols * 2];
            let mut pieces = Pieces::new(part, types);
            assert_eq!(pieces.fill(&mut room), room.len());
            assert!(pieces.is_empty() && room == expected(part, types));
        }
    }

    #[test]
    fn what_stands_for_zeros_has_no_pieces() {
        let types = Types { rounded: DType::F32, held: DType::F32 };
        assert!(Pieces::new(view(DType::F32, 3, 70, &[]), types).is_empty());
    }
}
