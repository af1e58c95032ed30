//! The instruction sets that kernels are compiled for, and the choice among them.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
use super::simd::{Kernel, Simd, portable::Portable};
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512, and AMX for the products of linear layers in bf16.
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512<false>, Amx),
    /// AVX-512 with bf16 products.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<true>),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// What the target of the build has.
    Portable(Portable),
}

impl Isa {
    /// All that this processor has, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let wide = Avx512::detect();
            let pairs = Avx512::detect().map(Self::Avx512Bf16);
            found.extend(wide.zip(Amx::detect()).map(|(wide, amx)| Self::Amx(wide, amx)));
            found.extend(if intel() { None } else { pairs });
            found.extend(wide.map(Self::Avx512));
            found.extend(if intel() { pairs } else { None });
            found.extend(Avx2::detect().map(Self::Avx2));
        }
        found.push(Self::Portable(Portable));
        found
    }

    /// The fastest.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Rows of the largest tile, [`Simd::ROWS`].
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => Avx512::<true>::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) | Self::Avx512(_) => Avx512::<false>::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::ROWS,
            Self::Portable(_) => Portable::ROWS,
        }
    }

    /// AMX, where it is to be used.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn amx(self) -> Option<Amx> {
        if let Self::Amx(_, amx) = self { Some(amx) } else { None }
    }

    /// Runs a kernel compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(simd) => simd.enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(simd, _) | Self::Avx512(simd) => simd.enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.enter(kernel),
            Self::Portable(simd) => simd.enter(kernel),
        }
    }
}

/// Whether Intel made this processor. Its AVX512_BF16 products (Sapphire Rapids: one in two cycles,
/// 85 GFLOP/s measured on a core) are slower than widening to f32 (150); AMD's are faster.
#[cfg(target_arch = "x86_64")]
fn intel() -> bool {
    // The maker's name lies in EBX, EDX, ECX; "Genu" is the start of "GenuineIntel".
    std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) => "amx",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Portable(_) => "portable",
        })
    }
}
