//! Products of bf16 by AMX, the matrix registers of Intel's servers (Sapphire Rapids and later).
//!
//! `TDPBF16PS` multiplies sixteen rows of 32 bf16 by 32 x 16 and adds to sixteen rows of sixteen
//! f32. Its second operand is sixteen lines of a panel as they are, which takes the place of a
//! [`super::tile::Tile`] some ten times faster; `x` is rounded to bf16. A row of sums depends on
//! neither the rows nor the panels beside it, so it has the same bits in any tile.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use crate::element::bf16_bits;

use super::gemm::{Onto, finish};
use super::panels::Panels;
use super::simd::{Kernel, LANES, Lanes, Line, Simd};
use super::tile::WIDE;

/// Rows of a tile register.
const ROWS: usize = 16;

/// Elements of a row of a tile register.
const COLUMNS: usize = 32;

/// Proof that the processor has AMX with bf16, that the system lets this process use it, and that
/// it multiplies right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(());

impl Amx {
    /// The proof, if there is one.
    pub fn detect() -> Option<Self> {
        // Leaf 7 of CPUID, EDX: bit 22 is AMX-BF16, bit 24 AMX-TILE.
        const BITS: u32 = 1 << 22 | 1 << 24;
        let has = __cpuid_count(7, 0).edx & BITS == BITS;
        (has && permitted()).then_some(Self(())).filter(|amx| amx.multiplies_right())
    }
}

/// Asks the system for the tile registers, which are off in a new process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and changes only what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Makes `[tile][32 columns][row]` of rows of `x`: tiles of sixteen rows, the last one with what is
/// left. Columns are padded with zeros.
pub struct Pack<'a> {
    pub x: &'a [&'a [f32]],
    pub packed: &'a mut Vec<Line>,
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        self.packed.clear();
        for rows in self.x.chunks(ROWS) {
            let start = self.packed.len();
            let lines = rows[0].len().div_ceil(COLUMNS) * rows.len();
            self.packed.resize(start + lines, Line([0; 64]));
            for (row, x) in rows.iter().enumerate() {
                let lines = self.packed[start + row..].iter_mut().step_by(rows.len());
                for (line, x) in lines.zip(x.chunks(COLUMNS)) {
                    for (element, x) in line.0.as_chunks_mut().0.iter_mut().zip(x) {
                        *element = bf16_bits(*x).to_le_bytes();
                    }
                }
            }
        }
    }
}

/// The share of a product in some columns of the output, see [`super::gemm::Product`].
pub struct Product<'a, 'out> {
    pub amx: Amx,
    /// All rows, as [`Pack`] makes them.
    pub x: &'a [Line],
    pub matrix: &'a Panels,
    pub first: usize,
    pub onto: Onto<'a>,
    pub out: &'a mut [&'out mut [f32]],
}

impl Kernel for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let row_lines = self.matrix.cols.div_ceil(COLUMNS);
        let last = self.matrix.rows.div_ceil(LANES) - 1;
        for column in (0..self.out[0].len()).step_by(LANES * WIDE) {
            // Past the last panel it is taken again: sums that nobody looks at.
            let panel = |n: usize| self.matrix.panel((self.first + column / LANES + n).min(last));
            let panels = [panel(0), panel(1), panel(2)];
            for (x, out) in self.x.chunks(row_lines * ROWS).zip(self.out.chunks_mut(ROWS)) {
                let mut sums = [[[0.0; LANES]; WIDE]; ROWS];
                self.amx.tile(x, out.len(), panels, &mut sums);
                for (sums, out) in sums.iter().zip(out) {
                    finish(sums, self.onto, column, out);
                }
            }
        }
    }
}

/// What `LDTILECFG` reads: palette 1, then row bytes and rows of each register.
///
/// Registers 0 to 2 are sums, 3 is x, 4 and 5 are panels; 6 and 7 are x and a panel again, for
/// lines that are fewer than sixteen.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// For `rows` of x, and panels whose length is a multiple of sixteen lines and `rest` more.
    fn new(rows: usize, rest: usize) -> Self {
        let (m, rest_rows, rest_bytes) = (rows as u8, rest as u8, rest as u16 * 4);
        // A register without bytes has no rows, and the other way round.
        let (m_rest, full) = if rest == 0 { (0, 0) } else { (m, 64) };
        let (mut row_bytes, mut row_counts) = ([0; 16], [0; 16]);
        row_bytes[..8].copy_from_slice(&[64, 64, 64, 64, 64, 64, rest_bytes, full]);
        row_counts[..8].copy_from_slice(&[m, m, m, m, 16, 16, m_rest, rest_rows]);
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows: row_counts }
    }
}

impl Amx {
    /// `sums = x . panels`, `x` of at most sixteen `rows` with a line for each sixteen of a panel.
    fn tile(
        self,
        x: &[Line],
        rows: usize,
        panels: [&[Line]; WIDE],
        sums: &mut [[Lanes; WIDE]; ROWS],
    ) {
        let (whole, rest) = (panels[0].len() / ROWS, panels[0].len() % ROWS);
        assert!(0 < rows && rows <= ROWS, "{rows} rows in a tile: this is a bug");
        assert_eq!(x.len(), rows * (whole + rest.div_ceil(ROWS)), "lines of x: this is a bug");
        assert!(panels.iter().all(|panel| panel.len() == panels[0].len()));
        let config = Config::new(rows, rest);
        // SAFETY: `self` exists only where AMX may be used. The registers are configured here and
        // released at the end. Every load is of as many lines as the configuration says, and the
        // assertions hold `x` and `panels` to that; `sums` has sixteen rows of three times 64
        // bytes. A prefetch may name any address.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0; tilezero tmm1; tilezero tmm2",
                "test {whole}, {whole}; jz 3f",
                "2:",
                ".irp at, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                "prefetcht0 [{a} + 2048 + 64 * \\at]",
                "prefetcht0 [{b} + 2048 + 64 * \\at]",
                "prefetcht0 [{c} + 2048 + 64 * \\at]",
                ".endr",
                "tileloadd tmm3, [{x} + {line}]",
                "tileloadd tmm4, [{a} + {line}]; tdpbf16ps tmm0, tmm3, tmm4",
                "tileloadd tmm5, [{b} + {line}]; tdpbf16ps tmm1, tmm3, tmm5",
                "tileloadd tmm4, [{c} + {line}]; tdpbf16ps tmm2, tmm3, tmm4",
                "add {x}, {x_bytes}; add {a}, 1024; add {b}, 1024; add {c}, 1024",
                "dec {whole}; jnz 2b",
                "3:",
                "test {rest}, {rest}; jz 4f",
                "tileloadd tmm6, [{x} + {line}]",
                "tileloadd tmm7, [{a} + {line}]; tdpbf16ps tmm0, tmm6, tmm7",
                "tileloadd tmm7, [{b} + {line}]; tdpbf16ps tmm1, tmm6, tmm7",
                "tileloadd tmm7, [{c} + {line}]; tdpbf16ps tmm2, tmm6, tmm7",
                "4:",
                "mov {line:e}, 192",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 64], tmm1",
                "tilestored [{sums} + {line} + 128], tmm2",
                "tilerelease",
                config = in(reg) &raw const config,
                x = inout(reg) x.as_ptr() => _,
                a = inout(reg) panels[0].as_ptr() => _,
                b = inout(reg) panels[1].as_ptr() => _,
                c = inout(reg) panels[2].as_ptr() => _,
                sums = in(reg) sums.as_mut_ptr(),
                whole = inout(reg) whole => _,
                rest = in(reg) rest,
                line = inout(reg) size_of::<Line>() => _,
                x_bytes = in(reg) rows * size_of::<Line>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Whether a product of small whole numbers, which no rounding touches, comes out right here.
    /// A virtual machine may promise instructions that its host gets wrong or does not save.
    fn multiplies_right(self) -> bool {
        const LINES: usize = ROWS + 5;
        let (rows, x_lines) = (3, LINES.div_ceil(ROWS));
        let number = |at: usize| (at * 7919 % 13) as f32 - 6.0;
        let x_at = |row: usize, column: usize| number(row * 64 + column);
        let panel_at = |panel, line, lane, part| number(panel * 999 + line * 32 + lane * 2 + part);
        let line_of = |values: &dyn Fn(usize) -> f32| {
            let mut line = Line([0; 64]);
            for (at, bytes) in line.0.as_chunks_mut().0.iter_mut().enumerate() {
                *bytes = bf16_bits(values(at)).to_le_bytes();
            }
            line
        };
        let x: Vec<Line> = (0..x_lines * rows)
            .map(|at| line_of(&|column| x_at(at % rows, at / rows * COLUMNS + column)))
            .collect();
        let panels: [Vec<Line>; WIDE] = std::array::from_fn(|panel| {
            let line = |line| line_of(&|at| panel_at(panel, line, at / 2, at % 2));
            (0..LINES).map(line).collect()
        });
        let mut sums = [[[f32::NAN; LANES]; WIDE]; ROWS];
        self.tile(&x, rows, panels.each_ref().map(Vec::as_slice), &mut sums);
        let want = |row: usize, panel: usize, lane: usize| -> f32 {
            let products = (0..LINES * 2)
                .map(|column| x_at(row, column) * panel_at(panel, column / 2, lane, column % 2));
            products.sum()
        };
        (0..rows).all(|row| {
            (0..WIDE).all(|panel| {
                (0..LANES).all(|lane| sums[row][panel][lane] == want(row, panel, lane))
            })
        })
    }
}
