//! The fast half takes no memory from the allocator once its batches have grown.
#![allow(
    unsafe_code,
    reason = "an allocator that counts is unsafe by its interface"
)]

#[path = "../benches/stages/pair.rs"]
#[allow(dead_code, reason = "benchmarks use more of it")]
mod pair;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use podmesh_engine::tunnel::TunnelKind;

use pair::{HEADERS, Pair, SEGMENT, as_super, super_packet};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations by this thread while `work` runs.
fn count(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn sealing_and_opening_do_not_allocate() {
    assert_eq!(count(|| drop(vec![1, 2, 3])), 1);
    for kind in [
        TunnelKind::Boringtun,
        TunnelKind::Batched { wide: false },
        TunnelKind::Batched { wide: true },
    ] {
        do_not_allocate(kind);
    }
}

#[test]
fn batches_go_on_after_their_memory_was_taken() {
    let mut pair = Pair::new(10);
    let mut large = super_packet(45);
    for _ in 0..3 {
        pair.seal(&mut [as_super(&mut large)]);
        assert_eq!(pair.open(), HEADERS + 45 * usize::from(SEGMENT));
        // As from a kernel that has used it for something else.
        pair.opened.idle_memory().fill(0);
        for part in pair.sealed.idle_memory() {
            part.fill(0);
        }
        assert_eq!(pair.opened.runs().count(), 0);
        assert_eq!(pair.sealed.runs().count(), 0);
    }
}

fn do_not_allocate(kind: TunnelKind) {
    let mut pair = Pair::of_kind(kind, 10);
    let mut large = super_packet(45);
    let mut small = super_packet(1);
    small.truncate(HEADERS + 12);
    small[2..4].copy_from_slice(&64_u16.to_be_bytes());
    let mut smalls = vec![small; 32];
    let mut both = |times: usize| {
        for _ in 0..times {
            pair.seal(&mut [as_super(&mut large)]);
            assert_eq!(pair.open(), HEADERS + 45 * usize::from(SEGMENT));
            let mut each = smalls.iter_mut();
            let mut batch: [_; 32] =
                std::array::from_fn(|_| each.next().expect("thirty-two").as_mut_slice().into());
            pair.seal(&mut batch);
            assert_eq!(pair.open(), 32 * 64);
        }
    };
    both(20);
    assert_eq!(count(|| both(1_000)), 0, "{kind:?}");
}
