//! What the ranks add together is `scaling B A` of the file, for every kind and number of ranks.

use std::ops::Range;
use std::path::Path;

use contract::adapter::{Exchange, Generation, Kind, LocalPair, PairShape};
use contract::base::{BaseShape, Parallel, Projection};
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::json;

use crate::compile::Checked;
use crate::cut::{Group, PlainSharding};
use crate::site::Site;
use crate::tests::fixture::*;

const SHARDINGS: [PlainSharding; 2] = [PlainSharding::Replicated, PlainSharding::FullySharded];

fn load(folder: &Path, group: &Group) -> Generation {
    let checked = Checked::open(folder, group).unwrap();
    let bytes = checked.plan.bytes(group);
    let generation = checked.compile("it", group, None).unwrap();
    assert_eq!(bytes, generation.bytes(), "the plan knows the size before any data is read");
    generation
}

/// Checks every rank of a group against the file, at the scaling that each module should have.
fn assert_adds_up(folder: &Path, group: &Group, scaling: impl Fn(Site) -> f64) {
    let generation = load(folder, group);
    let products = products(folder, &group.base);
    assert!(!products.is_empty());
    for site in Site::all(&group.base) {
        let pairs: Option<Vec<_>> = (0..group.ranks)
            .map(|rank| generation.ranks[rank][site.layer][site.projection.index()].as_ref())
            .collect();
        assert_eq!(pairs.is_some(), products.contains_key(&site), "{site}");
        let Some(pairs) = pairs else { continue };
        let mut delta = products[&site].clone();
        delta.values.iter_mut().for_each(|value| *value *= scaling(site));
        (0..delta.columns).for_each(|input| assert_column(&pairs, site, group, input, &delta));
    }
}

/// Runs the unit vector of one input feature through all ranks, as the contract says: shrink,
/// exchange, expand, and the base's own sum after a row-parallel layer.
fn assert_column(pairs: &[&LocalPair], site: Site, group: &Group, column: usize, delta: &Matrix) {
    let shards: Vec<_> =
        (0..group.ranks).map(|rank| group.base.shard(site.projection, rank, group.ranks)).collect();
    let wanted: Vec<_> = delta.values[column..].iter().step_by(delta.columns).copied().collect();
    let shrunk = pairs.iter().zip(&shards).map(|(pair, shard)| {
        let input: Vec<_> = shard.input.clone().map(|at| f64::from(at == column)).collect();
        multiply(&pair.a, pair.shape.shrink_rank, pair.shape.a_blocks, &input)
    });
    let shrunk: Vec<_> = shrunk.collect();
    let mut sum = vec![0.0; delta.rows];
    for (rank, (pair, shard)) in pairs.iter().zip(&shards).enumerate() {
        let hidden = exchange(pair.shape.exchange, &shrunk, rank);
        assert_eq!(hidden.len(), pair.shape.expand_rank);
        let added = multiply(&pair.b, pair.shape.output.len(), pair.shape.b_blocks, &hidden);
        let first = shard.output.start + pair.shape.output.start;
        let rows = first..first + added.len();
        match site.projection.parallel() {
            // Each on its own: heads that ranks share have to be right on every one of them.
            Parallel::Column => {
                assert_eq!(rows, shard.output);
                assert_close(&added, rows, &wanted, site);
            }
            Parallel::Row => sum[rows].iter_mut().zip(added).for_each(|(sum, it)| *sum += it),
        }
    }
    if site.projection.parallel() == Parallel::Row {
        assert_close(&sum, 0..delta.rows, &wanted, site);
    }
}

#[track_caller]
fn assert_close(found: &[f64], rows: Range<usize>, wanted: &[f64], site: Site) {
    for (row, found) in rows.zip(found) {
        let close = (found - wanted[row]).abs() <= 1e-5 * (1.0 + wanted[row].abs());
        assert!(close, "{site}, row {row}: {found}, not {}", wanted[row]);
    }
}

/// `y = M x` with a compact block-diagonal M.
fn multiply(values: &[f32], rows: usize, blocks: usize, x: &[f64]) -> Vec<f64> {
    let width = x.len() / blocks;
    assert_eq!(values.len(), rows * width);
    let line = |row: usize| {
        let block = row / (rows / blocks);
        let factors = values[row * width..].iter().zip(&x[block * width..(block + 1) * width]);
        factors.map(|(value, x)| f64::from(*value) * x).sum()
    };
    (0..rows).map(line).collect()
}

fn exchange(exchange: Exchange, shrunk: &[Vec<f64>], rank: usize) -> Vec<f64> {
    match exchange {
        Exchange::None => shrunk[rank].clone(),
        Exchange::Gather => shrunk.concat(),
        Exchange::Reduce => {
            (0..shrunk[rank].len()).map(|at| shrunk.iter().map(|it| it[at]).sum()).collect()
        }
    }
}

#[test]
fn goldens_add_up_at_every_number_of_ranks() {
    let bases = [
        ("llama", LLAMA),
        ("llama-odd", base(48, 72, [6, 6, 8])),
        ("llama-tied", base(64, 96, [8, 2, 8])),
        ("mistral", base(64, 96, [8, 8, 8])),
        ("qwen2", LLAMA),
        ("qwen3", base(64, 96, [8, 4, 16])),
    ];
    for (name, base) in bases {
        let folders = std::fs::read_dir(goldens().join(name).join("adapters")).unwrap();
        for folder in folders.map(|folder| folder.unwrap().path()) {
            for ranks in [1, 2, 3, 4, 6, 8] {
                if base.indivisible(ranks).is_none() {
                    let scaling = |site| golden_scaling(&folder, site);
                    assert_adds_up(&folder, &group(base, ranks), scaling);
                }
            }
        }
    }
}

/// As `make_goldens.py` has them.
fn golden_scaling(folder: &Path, site: Site) -> f64 {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let q0 = site == Site { layer: 0, projection: Projection::Q };
    match name {
        "regex-targets" => 3.0,
        "one-layer" => 4.0,
        "rslora-patterns" | "bd2-rslora-patterns" => match site.projection {
            Projection::Down => 8.0 / 4f64.sqrt(),
            Projection::Up => 4.0 / 8f64.sqrt(),
            _ if q0 => 8.0 / 16f64.sqrt(),
            _ => 8.0 / 8f64.sqrt(),
        },
        _ => 2.0,
    }
}

#[test]
fn every_kind_adds_up_under_both_shardings() {
    for ranks in [1, 2, 4, 8] {
        for plain_sharding in SHARDINGS {
            let group = Group { plain_sharding, ..group(LLAMA, ranks) };
            for (layout, rank, blocks) in [
                (PLAIN, 5, 1),
                (PLAIN, 16, 1),
                (BLOCKS, 8, 2),
                (BLOCKS, 8, 4),
                (BLOCKS, 16, 8),
                (BLOCKS, 16, 16),
                (REVERSED, 8, 2),
                (REVERSED, 8, 4),
            ] {
                let folder = Folder::new(&LLAMA, rank, layout, blocks);
                assert_adds_up(folder.write(), &group, |_| 16.0 / rank as f64);
            }
        }
    }
}

#[test]
fn half_precision_is_read_as_it_is() {
    let folder = Folder::new(&LLAMA, 6, BLOCKS, 2);
    for dtype in [Dtype::F16, Dtype::BF16] {
        assert_adds_up(folder.write_as(dtype), &group(LLAMA, 2), |_| 16.0 / 6.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Blocks that no rank's range is aligned to, heads held by several ranks, odd sizes.
    #[test]
    fn any_number_of_blocks_adds_up_at_any_number_of_ranks(
        ranks in 1usize..=8,
        kv_heads_per_rank in 1usize..=2,
        queries in 1usize..=3,
        blocks in 1usize..=6,
        rank_of_block in 1usize..=3,
        layout in prop::sample::select(vec![BLOCKS, REVERSED]),
    ) {
        let kv_heads = ranks * kv_heads_per_rank;
        let base = base(12 * blocks, 5 * ranks * blocks, [kv_heads * queries, kv_heads, blocks]);
        let rank = rank_of_block * blocks;
        let folder = Folder::new(&base, rank, layout, blocks);
        let path = folder.write();
        for plain_sharding in SHARDINGS {
            let group = Group { plain_sharding, ..group(base, ranks) };
            assert_adds_up(path, &group, |_| 16.0 / rank as f64);
        }
    }
}

/// Shapes of the local pairs of layer 0.
fn shapes(base: BaseShape, ranks: usize, blocks: usize, projection: Projection) -> Vec<PairShape> {
    let folder = Folder::new(&base, 8, if blocks > 1 { BLOCKS } else { PLAIN }, blocks);
    let generation = load(folder.write(), &group(base, ranks));
    let pair = |rank: usize| generation.ranks[rank][0][projection.index()].clone().unwrap();
    (0..ranks).map(|rank| pair(rank).shape).collect()
}

fn shape(input: usize, output: usize, lora_rank: usize, [a, b]: [usize; 2]) -> PairShape {
    PairShape {
        input,
        output: 0..output,
        shrink_rank: lora_rank,
        expand_rank: lora_rank,
        a_blocks: a,
        b_blocks: b,
        exchange: Exchange::None,
    }
}

#[test]
fn block_diagonal_pairs_are_as_small_as_the_paper_says() {
    let (q, down) = (Projection::Q, Projection::Down);
    for (ranks, blocks, wanted) in [
        (4, 4, [shape(64, 16, 2, [1, 1]), shape(24, 64, 2, [1, 1])]), // one block a rank
        (2, 4, [shape(64, 32, 4, [1, 2]), shape(48, 64, 4, [2, 1])]), // two blocks, kept compact
        (1, 4, [shape(64, 64, 8, [1, 4]), shape(96, 64, 8, [4, 1])]), // all of them
        (8, 4, [shape(64, 8, 2, [1, 1]), shape(12, 64, 2, [1, 1])]),  // two ranks share a block
        (4, 1, [shape(64, 16, 8, [1, 1]), shape(24, 64, 8, [1, 1])]), // plain: one factor whole
    ] {
        for (projection, wanted) in [q, down].into_iter().zip(wanted) {
            for found in shapes(LLAMA, ranks, blocks, projection) {
                assert_eq!(found, wanted, "{projection:?}, {blocks} blocks on {ranks} ranks");
            }
        }
    }
}

#[test]
fn shared_kv_heads_bring_all_their_blocks() {
    // 8 blocks over 4 heads on 8 ranks: the two ranks of a head need both of its blocks.
    let found = shapes(LLAMA, 8, 8, Projection::K);
    assert!(found.iter().all(|found| *found == shape(64, 8, 2, [1, 2])), "{found:?}");
}

#[test]
fn blocks_across_a_rank_boundary_are_densified_there_only() {
    // 3 blocks of 16 outputs on 2 ranks of 24: each rank has one and a half.
    let odd = base(48, 72, [6, 6, 8]);
    let folder = Folder::new(&odd, 6, BLOCKS, 3);
    let generation = load(folder.write(), &group(odd, 2));
    for layers in &generation.ranks {
        let pair = layers[0][Projection::Q.index()].as_ref().unwrap();
        assert_eq!(pair.shape, shape(48, 24, 4, [1, 1]), "4 of 6 lora ranks");
    }
}

#[test]
fn only_plain_modules_of_fully_sharded_groups_exchange() {
    let exchanges = |layout: Layout, ranks: usize| {
        let folder = Folder::new(&LLAMA, 8, layout, 2);
        let plain_sharding = PlainSharding::FullySharded;
        let generation = load(folder.write(), &Group { plain_sharding, ..group(LLAMA, ranks) });
        let pairs = generation.ranks.iter().flatten().flatten().flatten();
        let mut found: Vec<_> = pairs.map(|pair| format!("{:?}", pair.shape.exchange)).collect();
        found.sort();
        found.dedup();
        found
    };
    assert_eq!(exchanges(PLAIN, 4), ["Gather", "Reduce"]);
    assert_eq!(exchanges(PLAIN, 1), ["None"], "nobody to talk to");
    assert_eq!(exchanges(BLOCKS, 4), ["None"]);
    assert_eq!(exchanges(REVERSED, 4), ["None"]);
}

#[test]
fn the_kind_is_what_the_shapes_say() {
    let kind = |folder: &Folder| load(folder.write(), &group(LLAMA, 2)).kind;
    assert_eq!(kind(&Folder::new(&LLAMA, 8, PLAIN, 1)), Kind::Plain);
    assert_eq!(kind(&Folder::new(&LLAMA, 8, BLOCKS, 4)), Kind::BlockDiagonal { blocks: 4 });
    let declared = Folder::new(&LLAMA, 8, BLOCKS, 2).config["use_bdlora"].clone();
    let dense = Folder::new(&LLAMA, 8, PLAIN, 1).with(json!({ "use_bdlora": declared }));
    assert_eq!(kind(&dense), Kind::Plain, "trained on quantised layers");
}

#[test]
fn a_generation_is_named_by_all_its_bytes() {
    let id = |folder: &Folder| load(folder.write(), &group(LLAMA, 1)).id;
    let mut folder = Folder::new(&LLAMA, 4, PLAIN, 1);
    let first = id(&folder);
    assert_eq!(first, id(&folder));
    folder = folder.with(json!({"lora_alpha": 17}));
    let other_config = id(&folder);
    folder.tensors.values_mut().last().unwrap().values[0] += 1.0;
    let other_weights = id(&folder);
    assert!(first != other_config && other_config != other_weights && first != other_weights);
}
