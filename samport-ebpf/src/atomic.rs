//! 64-bit atomics on map memory.
//!
//! rustc's BPF targets declare no compare-and-exchange, so core's `AtomicU64` has none there; the
//! instruction exists since Linux 5.12.

/// Reads a word that others change.
///
/// # Safety
/// `at` is aligned to 8 and inside a map value.
#[inline(always)]
pub unsafe fn load(at: *const u64) -> u64 {
    // SAFETY: the caller's promise; an aligned 64-bit load is one instruction.
    unsafe { at.read_volatile() }
}

/// Writes `to` if `from` stands there. Returns what stood there.
///
/// # Safety
/// `at` is aligned to 8 and inside a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, from: u64, to: u64) -> u64 {
    let found;
    // SAFETY: the caller's promise; r0 holds the expected value and receives the one found.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {to})",
            at = in(reg) at,
            to = in(reg) to,
            inout("r0") from => found,
        );
    }
    found
}

/// Adds 1 in one instruction: for counters of this CPU that a program in an interrupt changes too.
///
/// # Safety
/// `at` is aligned to 8 and inside a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn increment(at: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({at} + 0) += {one}", at = in(reg) at, one = in(reg) 1_u64);
    }
}

/// The same for the host, which checks this crate but never runs it.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn increment(at: *mut u64) {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(at) }.fetch_add(1, Ordering::Relaxed);
}

/// The same for the host, which checks this crate but never runs it.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn compare_exchange(at: *mut u64, from: u64, to: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's promise.
    let cell = unsafe { AtomicU64::from_ptr(at) };
    match cell.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire) {
        Ok(found) | Err(found) => found,
    }
}
