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

/// Adds to a word that others change too: other CPUs, or a program in an interrupt; a negative number as its two's complement.
///
/// # Safety
/// `at` is aligned to 8 and inside a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn add(at: *mut u64, number: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({at} + 0) += {by}", at = in(reg) at, by = in(reg) number);
    }
}

/// The same for the host, which checks this crate but never runs it.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn add(at: *mut u64, number: u64) {
    // SAFETY: the caller's promise.
    let _ = unsafe { fetch_add(at, number) };
}

/// Adds to a word that other CPUs change too, and returns what it was.
///
/// # Safety
/// `at` is aligned to 8 and inside a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn fetch_add(at: *mut u64, number: u64) -> u64 {
    let before;
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "{number} = atomic_fetch_add((u64 *)({at} + 0), {number})",
            at = in(reg) at,
            number = inout(reg) number => before,
        );
    }
    before
}

/// The same for the host, which checks this crate but never runs it.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn fetch_add(at: *mut u64, number: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(at) }.fetch_add(number, Ordering::Relaxed)
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
