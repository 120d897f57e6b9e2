//! Bytes of packets and map values, loaded and stored by words.
//!
//! The compiler takes memory for aligned only as its types say, which for addresses and ports is not at
//! all, and goes through it byte by byte: that is most of a program's instructions, and of its stack. The
//! kernel knows better: where the machine reads words at any address (x86-64 and arm64 do), so may
//! programs, except from their own stack.

use core::mem::MaybeUninit;

/// Loads `N` bytes.
///
/// # Safety
/// All of them are inside a packet, as the verifier sees it, or a map value; never on the stack.
#[inline(always)]
pub unsafe fn load<const N: usize>(at: usize) -> [u8; N] {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    let to = bytes.as_mut_ptr().cast::<u8>();
    let mut done = 0;
    // SAFETY: the caller's promise; `done` and what is loaded there stay below N.
    unsafe {
        while done + 4 <= N {
            to.add(done).cast::<[u8; 4]>().write(word(at + done).to_ne_bytes());
            done += 4;
        }
        if done + 2 <= N {
            to.add(done).cast::<[u8; 2]>().write(half(at + done).to_ne_bytes());
            done += 2;
        }
        if done < N {
            to.add(done).write(((at + done) as *const u8).read());
        }
        bytes.assume_init()
    }
}

/// Stores `N` bytes.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub unsafe fn store<const N: usize>(at: usize, bytes: [u8; N]) {
    let mut done = 0;
    let from = bytes.as_ptr();
    // SAFETY: the caller's promise; `done` and what is stored there stay below N.
    unsafe {
        while done + 4 <= N {
            put_word(at + done, u32::from_ne_bytes(from.add(done).cast::<[u8; 4]>().read()));
            done += 4;
        }
        if done + 2 <= N {
            put_half(at + done, u16::from_ne_bytes(from.add(done).cast::<[u8; 2]>().read()));
            done += 2;
        }
        if done < N {
            ((at + done) as *mut u8).write(from.add(done).read());
        }
    }
}

/// Gives the words back, each as one that the compiler does not take apart again.
#[inline(always)]
pub fn in_words<const N: usize>(mut words: [u32; N]) -> [u32; N] {
    for word in &mut words {
        *word = whole(*word);
    }
    words
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the upper half was zero before")]
fn whole(word: u32) -> u32 {
    let mut value = u64::from(word);
    // SAFETY: nothing but the register is touched. No instruction at all would do for the compiler, but
    // not for the kernel: two lines of source would stand at one instruction then.
    unsafe {
        core::arch::asm!("{value} += 0", value = inout(reg) value, options(pure, nomem, nostack));
    }
    value as u32
}

#[cfg(not(target_arch = "bpf"))]
fn whole(word: u32) -> u32 {
    word
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the instruction leaves the upper half zero")]
unsafe fn word(at: usize) -> u32 {
    let value: u64;
    // SAFETY: the caller's promise. Nothing else is read, and nothing written.
    unsafe {
        core::arch::asm!(
            "{value} = *(u32 *)({at} + 0)",
            at = in(reg) at,
            value = out(reg) value,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    value as u32
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the instruction leaves the upper bits zero")]
unsafe fn half(at: usize) -> u16 {
    let value: u64;
    // SAFETY: as in `word`.
    unsafe {
        core::arch::asm!(
            "{value} = *(u16 *)({at} + 0)",
            at = in(reg) at,
            value = out(reg) value,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    value as u16
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn put_word(at: usize, value: u32) {
    let value = u64::from(value);
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({at} + 0) = {value}",
            at = in(reg) at,
            value = in(reg) value,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn put_half(at: usize, value: u16) {
    let value = u64::from(value);
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "*(u16 *)({at} + 0) = {value}",
            at = in(reg) at,
            value = in(reg) value,
            options(nostack, preserves_flags)
        );
    }
}

/// The same for the host, which checks this crate but never runs it.
#[cfg(not(target_arch = "bpf"))]
unsafe fn word(at: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { (at as *const u32).read_unaligned() }
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn half(at: usize) -> u16 {
    // SAFETY: the caller's promise.
    unsafe { (at as *const u16).read_unaligned() }
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn put_word(at: usize, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { (at as *mut u32).write_unaligned(value) };
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn put_half(at: usize, value: u16) {
    // SAFETY: the caller's promise.
    unsafe { (at as *mut u16).write_unaligned(value) };
}
