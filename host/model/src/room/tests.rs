//! Shares of made-up devices, and ranks that tell each other about them.

use std::thread;
use std::time::Duration;

use collective::threads::ThreadComm;
use kernels::cpu::Cpu;

use super::*;

const GIB: u64 = 1024;

/// Of 8B parameters in 16 bits on one rank, blocks of 16 tokens: 2 MiB each.
const LARGE: Footprint = Footprint { model: 16 << 30, block: 2 << 20, adapters: 5 << 30 };

const FITTING: Blocks = Blocks::Fitting { least: 512, most: 1 << 20 };

fn card(identity: u32, free: u64) -> Told {
    Told { identity, total: 80 * GIB, free: free * GIB, earlier: 0, later: 0 }
}

#[test]
fn a_cache_fills_what_a_device_has_left() {
    // 78 of 80 free, 8 kept, 16 for the model, 5 for adapters: 49 GiB.
    assert_eq!(agree(&[card(1, 78)], LARGE, FITTING), Ok(49 * 512));
    // Adapters keep a quarter of what is left at most, here of 4 GiB.
    assert_eq!(agree(&[card(1, 28)], LARGE, FITTING), Ok(3 * 512));
    let most = Blocks::Fitting { least: 1, most: 100 };
    assert_eq!(agree(&[card(1, 78)], LARGE, most), Ok(100));
}

#[test]
fn ranks_share_a_device_and_agree_on_the_least() {
    // 70 GiB for two: 35 each, 19 beside the model, 4.75 of them for adapters.
    let blocks = agree(&[card(1, 78), card(1, 78)], LARGE, FITTING).unwrap();
    assert_eq!(blocks, (14.25 * 512.0) as usize);
    assert_eq!(agree(&[card(1, 78), card(2, 78)], LARGE, FITTING), Ok(49 * 512));
    assert_eq!(agree(&[card(1, 78), card(2, 58)], LARGE, FITTING), Ok(29 * 512));
    // Whoever looks late sees what others have taken; all go by that.
    assert_eq!(agree(&[card(1, 78), card(1, 78)], LARGE, FITTING), Ok(blocks));
}

#[test]
fn replicas_that_come_later_find_as_much() {
    let first = agree(&[Told { later: 1, ..card(1, 78) }], LARGE, FITTING).unwrap();
    let taken = 16 + (first as u64 * 2).div_ceil(1024);
    let second = agree(&[Told { earlier: 1, ..card(1, 78 - taken) }], LARGE, FITTING).unwrap();
    assert!(first.abs_diff(second) < first / 16, "{first} and {second}");
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let says = |told: &[Told], blocks, parts: &[&str]| {
        let why = agree(told, LARGE, blocks).unwrap_err().refusal("device 0 (Card)", &LARGE, 16);
        assert!(parts.iter().all(|part| why.contains(part)), "{why:?} lacks one of {parts:?}");
    };
    let free = "device 0 (Card) has 12.00 GiB of 80.00 GiB free";
    let model = "16.00 GiB for weights";
    says(&[card(1, 12)], FITTING, &[free, "for 1 rank;", model, "nothing is left for the cache"]);
    says(&[card(1, 12)], Blocks::Fixed(1), &[free, model, "nothing is left for the cache"]);
    let long = Blocks::Fitting { least: 8192, most: 1 << 20 };
    let context = [
        "16.00 GiB for a KV cache of 131072 tokens",
        "3.00 GiB are left for it, 24576 tokens when a tenth",
    ];
    says(&[card(1, 28)], long, &context);
    says(&[card(1, 28)], long, &["model.context_max", "parallel.tensor", "parallel.devices"]);
    says(
        &[card(1, 28)],
        Blocks::Fixed(6145),
        &["12.00 GiB are left for it", "a KV cache of 98320 tokens"],
    );
    says(&[card(1, 30), card(1, 30)], FITTING, &["30.00 GiB of 80.00 GiB free for 2 ranks"]);
}

#[test]
fn a_size_that_was_given_is_taken_if_it_can_be() {
    assert_eq!(agree(&[card(1, 28)], LARGE, Blocks::Fixed(6144)), Ok(6144));
}

#[test]
fn all_ranks_hear_what_each_has_told() {
    let told = |rank: u64| Told {
        identity: 7,
        total: 81_559,
        free: 70_000 + rank,
        earlier: 1,
        later: rank,
    };
    let comms = ThreadComm::group(3, Duration::from_secs(20), &Default::default());
    let spawn = |(mut comm, rank): (ThreadComm, u64)| {
        thread::spawn(move || tell(&mut Cpu::new(1).unwrap(), &mut comm, told(rank)).unwrap())
    };
    let ranks: Vec<_> = comms.into_iter().zip(0..).map(spawn).collect();
    for rank in ranks {
        assert_eq!(rank.join().unwrap(), [0, 1, 2].map(told));
    }
}
