//! The pool of KV blocks: who holds which, and which free ones still have useful contents.

use std::collections::HashMap;

use contract::step::BlockId;

use crate::prefix::Digest;

/// All blocks of a replica. A block is held by as many sequences as share it; a free block keeps
/// its name, and can be shared again, until it is taken for something else. Of the free blocks,
/// unnamed ones are taken first, then the one that was freed longest ago.
pub struct Pool {
    /// One a block, and at the end one that ties the list of free blocks into a ring.
    nodes: Vec<Node>,
    named: HashMap<Digest, BlockId>,
    available: usize,
}

struct Node {
    holders: u32,
    name: Option<Digest>,
    /// Neighbours in the ring; valid while nobody holds the block.
    before: u32,
    after: u32,
}

impl Pool {
    /// A pool of `blocks` free blocks without names.
    pub fn new(blocks: usize) -> Self {
        let ring = blocks as u32;
        let node = |at: u32| Node {
            holders: 0,
            name: None,
            before: if at == 0 { ring } else { at - 1 },
            after: if at == ring { 0 } else { at + 1 },
        };
        Self { nodes: (0..=ring).map(node).collect(), named: HashMap::new(), available: blocks }
    }

    /// Number of blocks.
    pub fn total(&self) -> usize {
        self.nodes.len() - 1
    }

    /// Blocks that nobody holds.
    pub fn available(&self) -> usize {
        self.available
    }

    /// Whether nobody holds this block.
    pub fn is_free(&self, block: BlockId) -> bool {
        self.nodes[block.0 as usize].holders == 0
    }

    /// The block with these contents.
    pub fn find(&self, name: &Digest) -> Option<BlockId> {
        self.named.get(name).copied()
    }

    /// Takes a free block for new contents.
    pub fn take(&mut self) -> Option<BlockId> {
        if self.available == 0 {
            return None;
        }
        let block = BlockId(self.nodes[self.total()].after);
        self.hold(block);
        if let Some(name) = self.nodes[block.0 as usize].name.take() {
            self.named.remove(&name);
        }
        Some(block)
    }

    /// Adds a holder. The contents stay as they are.
    pub fn hold(&mut self, block: BlockId) {
        let node = &mut self.nodes[block.0 as usize];
        node.holders += 1;
        if node.holders == 1 {
            let (before, after) = (node.before, node.after);
            self.nodes[before as usize].after = after;
            self.nodes[after as usize].before = before;
            self.available -= 1;
        }
    }

    /// Takes a holder away.
    pub fn release(&mut self, block: BlockId) {
        let ring = self.total() as u32;
        let node = &mut self.nodes[block.0 as usize];
        node.holders =
            node.holders.checked_sub(1).expect("a released block is held: this is a bug");
        if node.holders > 0 {
            return;
        }
        self.available += 1;
        if node.name.is_some() {
            let last = self.nodes[ring as usize].before;
            self.link(last, block.0, ring);
        } else {
            let first = self.nodes[ring as usize].after;
            self.link(ring, block.0, first);
        }
    }

    /// Names the contents of a held block, so that others can share it. Where two sequences
    /// computed the same, the first block keeps the name.
    pub fn name(&mut self, block: BlockId, name: Digest) {
        let holder = *self.named.entry(name).or_insert(block);
        if holder == block {
            self.nodes[block.0 as usize].name = Some(name);
        }
    }

    fn link(&mut self, before: u32, block: u32, after: u32) {
        self.nodes[before as usize].after = block;
        self.nodes[after as usize].before = block;
        let node = &mut self.nodes[block as usize];
        (node.before, node.after) = (before, after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(content: u32) -> Digest {
        Digest::root(None).after(&[content])
    }

    #[test]
    fn unnamed_blocks_are_taken_first_then_those_freed_longest_ago() {
        let mut pool = Pool::new(4);
        let blocks: Vec<_> = (0..4).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.take(), None);
        (0..3).for_each(|at| pool.name(blocks[at], name(at as u32)));
        [2, 0, 3, 1].into_iter().for_each(|at| pool.release(blocks[at]));
        let taken: Vec<_> = (0..4).map(|_| pool.take().unwrap()).collect();
        assert_eq!(taken, [3, 2, 0, 1].map(|at| blocks[at]));
    }

    #[test]
    fn a_block_keeps_its_name_until_it_is_taken_for_something_else() {
        let mut pool = Pool::new(1);
        let block = pool.take().unwrap();
        pool.name(block, name(7));
        pool.release(block);
        assert_eq!(pool.find(&name(7)), Some(block));
        pool.hold(block);
        assert_eq!((pool.available(), pool.take()), (0, None));
        pool.release(block);
        pool.take().unwrap();
        assert_eq!(pool.find(&name(7)), None);
    }

    #[test]
    fn a_shared_block_is_free_when_the_last_holder_lets_go() {
        let mut pool = Pool::new(2);
        let block = pool.take().unwrap();
        pool.hold(block);
        pool.release(block);
        assert!(!pool.is_free(block));
        pool.release(block);
        assert!(pool.is_free(block));
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn of_two_blocks_with_one_name_the_first_is_found() {
        let mut pool = Pool::new(2);
        let [first, second] = [pool.take().unwrap(), pool.take().unwrap()];
        pool.name(first, name(1));
        pool.name(second, name(1));
        pool.release(second);
        pool.take().unwrap();
        assert_eq!(pool.find(&name(1)), Some(first));
    }
}
