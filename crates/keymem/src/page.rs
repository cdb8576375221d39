//! The pages behind every secret: mapping, locking, guarding, protecting and wiping them.
//!
//! The only file of this crate with unsafe code. A [`Reservation`] is address space with a guard page at either
//! end; a [`Region`] is a reservation whose middle is locked, readable and writable memory; a [`Page`] is a
//! region that owns one value. Each undoes its own part on drop, so that every early return does too.
#![allow(unsafe_code, reason = "mapping memory and placing a value in it cannot be said in safe Rust")]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, needs_drop};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{Pid, getpid};
use zeroize::Zeroize;

use crate::KeyMemError;
use crate::stack::{in_own_frame, scrub_stack};

const MAP_SECRET: &str = "map secret memory (RLIMIT_MEMLOCK is its limit: ulimit -l, LimitMEMLOCK=)";
const LOCK: &str = "lock pages in memory (RLIMIT_MEMLOCK is their limit: ulimit -l, LimitMEMLOCK=)";

/// Which kind of memory a secret is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// `memfd_secret` (Linux 5.14, on by default from 6.5): locked by nature, and taken out of the kernel's own
    /// map of memory, so that not even root can read it through `/proc/PID/mem` or `ptrace`.
    SecretMemory,
    /// Private anonymous memory under `mlock`: who may trace the process can read it.
    LockedAnonymous,
}

/// Which kind of memory a new secret gets on this kernel: secret memory if it is offered.
///
/// The kernel is asked each time (one or two system calls): a seccomp filter may have been installed since.
pub fn backing() -> Backing {
    match memfd_secret() {
        // Not built in, switched off at boot, or refused by seccomp or a security module.
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Backing::LockedAnonymous,
        // Any other error (no descriptor left, say) is for the caller of the real thing, not a reason to make
        // do with less.
        Ok(_) | Err(_) => Backing::SecretMemory,
    }
}

/// One value in a [`Region`] of its own, read-only from its making to its drop.
pub(crate) struct Page<T> {
    /// Points into the body of `region`, aligned, and to an initialized `T` that this page owns.
    value: NonNull<T>,
    region: Region,
    owns: PhantomData<T>,
}

// SAFETY: a page owns its value and its mapping alone, like a box; neither is bound to a thread.
unsafe impl<T: Send> Send for Page<T> {}
// SAFETY: a shared page gives out nothing but `&T` (and the kind of its memory).
unsafe impl<T: Sync> Sync for Page<T> {}

impl<T> Page<T> {
    /// Calls `make` and moves its value into a new page, then scrubs the stack the two used.
    pub(crate) fn place(backing: Backing, make: impl FnOnce() -> T) -> Result<Self, KeyMemError> {
        let region = Region::map(size_of::<T>(), backing)?;
        let value = region.slot::<T>();
        in_own_frame(|| {
            let mut made = MaybeUninit::new(make());
            // SAFETY: `value` is valid for writes of a `T` and aligned (Region::slot), `made` is initialized,
            // and the two do not overlap. `made` is not used as a `T` again, so the value has one owner.
            unsafe { ptr::copy_nonoverlapping(made.as_ptr(), value.as_ptr(), 1) };
            made.zeroize();
        });
        scrub_stack();
        Self { value, region, owns: PhantomData }.sealed()
    }

    /// Which kind of memory this page is.
    pub(crate) fn backing(&self) -> Backing {
        self.region.backing
    }

    /// The value.
    pub(crate) fn value(&self) -> &T {
        // SAFETY: `value` is initialized and aligned (see the field); it is readable until drop, and nothing
        // hands out a `&mut` to it once the page is made.
        unsafe { self.value.as_ref() }
    }

    /// This page, with writing to it forbidden.
    fn sealed(self) -> Result<Self, KeyMemError> {
        self.region.protect(MprotectFlags::READ).map_err(KeyMemError::at("make pages read-only"))?;
        Ok(self)
    }
}

impl<const N: usize> Page<[u8; N]> {
    /// Lets `fill` write into a new page of zeros, then scrubs the stack it used.
    pub(crate) fn fill<E: From<KeyMemError>>(
        backing: Backing,
        fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let region = Region::map(N, backing)?;
        // The kernel hands out zeros, and zeros are a valid byte array.
        let mut page = Self { value: region.slot(), region, owns: PhantomData };
        let filled = in_own_frame(|| {
            // SAFETY: initialized and aligned (see the field), writable until `sealed`, and `page` is borrowed
            // mutably meanwhile.
            fill(unsafe { page.value.as_mut() })
        });
        scrub_stack();
        filled?;
        Ok(page.sealed()?)
    }
}

impl<T> Drop for Page<T> {
    fn drop(&mut self) {
        // The region wipes itself next. Its pages must be writable first, for a `T` that changes itself while
        // it is dropped. In a forked child there is nothing to drop.
        if needs_drop::<T>() && self.region.make_writable() {
            // SAFETY: the page owns this initialized value (see the field) and nobody uses it after this.
            unsafe { ptr::drop_in_place(self.value.as_ptr()) };
        }
    }
}

/// Locked memory between two guard pages; zeros when mapped, wiped on drop.
struct Region {
    reservation: Reservation,
    backing: Backing,
}

impl Region {
    /// Maps at least `bytes` bytes of zeros of the kind asked for: locked, not dumped, not inherited.
    fn map(bytes: usize, backing: Backing) -> Result<Self, KeyMemError> {
        let reservation = Reservation::new(bytes)?;
        match backing {
            Backing::SecretMemory => reservation.back_with_secret_memory()?,
            Backing::LockedAnonymous => reservation.back_with_locked_anonymous()?,
        }
        // Before anything is written: from here on the pages have every property but the read-only one.
        reservation.advise(Advice::LinuxDontDump, "keep pages out of core dumps")?;
        reservation.advise(Advice::LinuxDontFork, "keep pages out of children")?;
        Ok(Self { reservation, backing })
    }

    /// Where a `T` goes: as close to the rear guard page as its alignment allows, so that reading past its end
    /// is a fault at once.
    fn slot<T>(&self) -> NonNull<T> {
        const { assert!(align_of::<T>() <= 4096, "more than the smallest page's alignment cannot be kept") };
        let room = self.reservation.body_bytes - size_of::<T>();
        let offset = room - room % align_of::<T>();
        // SAFETY: `map` was asked for at least `size_of::<T>()` bytes, so `offset` lies in the body.
        unsafe { self.reservation.body().byte_add(offset) }.cast()
    }

    fn protect(&self, access: MprotectFlags) -> Result<(), Errno> {
        let Reservation { body_bytes, .. } = self.reservation;
        // SAFETY: exactly the body of our own mapping; references into it are gone when access is taken away
        // (`sealed` consumes the page, and leaves reading allowed).
        unsafe { mm::mprotect(self.reservation.body().as_ptr(), body_bytes, access) }
    }

    /// Whether the body exists in this process and could be made writable.
    fn make_writable(&self) -> bool {
        self.reservation.is_here() && self.protect(MprotectFlags::READ | MprotectFlags::WRITE).is_ok()
    }

    /// Overwrites the whole body with zeros.
    fn wipe(&mut self) {
        // If the kernel will not make them writable, what remains is that unmapping gives the pages back to a
        // kernel that clears a page before it hands it out.
        if self.make_writable() {
            let Reservation { body_bytes, .. } = self.reservation;
            // SAFETY: the body is ours, mapped and writable; the value in it is dropped, no reference is left.
            let body = unsafe {
                std::slice::from_raw_parts_mut(self.reservation.body().cast::<u8>().as_ptr(), body_bytes)
            };
            body.zeroize();
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Address space of our own: a guard page, the body, a guard page. Unmapped on drop.
struct Reservation {
    base: NonNull<c_void>,
    page_bytes: usize,
    body_bytes: usize,
    /// The process that mapped it. A forked child has the struct but not the mapping, and may by now have
    /// something else at the address.
    owner: Pid,
}

impl Reservation {
    /// Reserves room for `bytes` bytes; all of it inaccessible until it is backed.
    fn new(bytes: usize) -> Result<Self, KeyMemError> {
        let page_bytes = rustix::param::page_size();
        let sizes = bytes.max(1).checked_next_multiple_of(page_bytes).and_then(|body_bytes| {
            let whole_bytes = body_bytes.checked_add(page_bytes.checked_mul(2)?)?;
            Some((body_bytes, whole_bytes))
        });
        let failed = KeyMemError::at("reserve address space");
        let Some((body_bytes, whole_bytes)) = sizes else { return Err(failed(Errno::NOMEM)) };
        // SAFETY: a new mapping where the kernel likes it; it replaces nothing.
        let base = unsafe {
            mm::mmap_anonymous(ptr::null_mut(), whole_bytes, ProtFlags::empty(), MapFlags::PRIVATE)
        }
        .map_err(failed)?;
        let base = NonNull::new(base).expect("the kernel maps nothing at address 0 unasked");
        Ok(Self { base, page_bytes, body_bytes, owner: getpid() })
    }

    /// The first byte behind the front guard page.
    fn body(&self) -> NonNull<c_void> {
        // SAFETY: the reservation is longer than its front guard page.
        unsafe { self.base.byte_add(self.page_bytes) }
    }

    /// Whether this is the process that mapped it.
    fn is_here(&self) -> bool {
        getpid() == self.owner
    }

    fn back_with_secret_memory(&self) -> Result<(), KeyMemError> {
        let fd = memfd_secret().map_err(KeyMemError::at("get secret memory (memfd_secret)"))?;
        let bytes = u64::try_from(self.body_bytes).expect("a size in memory fits 64 bits");
        rustix::fs::ftruncate(&fd, bytes).map_err(KeyMemError::at("size secret memory"))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: replaces exactly the body of our own reservation, to which there is no reference yet. The
        // descriptor is closed on return, so nobody can map or resize the file again. The kernel locks such a
        // mapping itself (VM_LOCKED); mlock(2) would only fail to fault it in.
        unsafe { mm::mmap(self.body().as_ptr(), self.body_bytes, access, flags, &fd, 0) }
            .map(drop)
            .map_err(KeyMemError::at(MAP_SECRET))
    }

    fn back_with_locked_anonymous(&self) -> Result<(), KeyMemError> {
        let body = self.body().as_ptr();
        // SAFETY: exactly the body of our own reservation, to which there is no reference yet.
        unsafe { mm::mprotect(body, self.body_bytes, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(KeyMemError::at("make pages accessible"))?;
        // SAFETY: as above; locking does not change what the memory holds.
        unsafe { mm::mlock(body, self.body_bytes) }.map_err(KeyMemError::at(LOCK))?;
        // Second to DONTFORK: should somebody undo that, the child gets zeros. Refused for secret memory.
        self.advise(Advice::LinuxWipeOnFork, "have pages wiped in children")
    }

    fn advise(&self, advice: Advice, step: &'static str) -> Result<(), KeyMemError> {
        // SAFETY: exactly the body of our own reservation; the advices used (DONTDUMP, DONTFORK, WIPEONFORK)
        // do not change what it holds for this process.
        unsafe { mm::madvise(self.body().as_ptr(), self.body_bytes, advice) }.map_err(KeyMemError::at(step))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.is_here() {
            let whole_bytes = self.body_bytes + 2 * self.page_bytes;
            // SAFETY: exactly our own mapping, and whoever could point into it is gone. It fails only for
            // arguments that are not a mapping's, or if splitting a mapping took one too many; this splits none.
            let _ = unsafe { mm::munmap(self.base.as_ptr(), whole_bytes) };
        }
    }
}

/// A new file of secret memory, of size 0.
fn memfd_secret() -> Result<OwnedFd, Errno> {
    // SAFETY: memfd_secret(2) takes one word of flags and touches no memory of ours.
    let returned = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::c_long::from(libc::O_CLOEXEC)) };
    match RawFd::try_from(returned) {
        // SAFETY: a descriptor that the kernel has just made for us, and that nobody else knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_clears_every_byte_of_the_body_although_it_was_read_only() {
        for backing in [Backing::SecretMemory, Backing::LockedAnonymous] {
            let mut region = Region::map(5000, backing).expect("locked memory");
            let bytes = region.reservation.body_bytes;
            assert_eq!(bytes, 8192);
            let body = region.reservation.body().cast::<u8>().as_ptr();
            // SAFETY: the body is `bytes` writable bytes, and no reference to them is live.
            unsafe { body.write_bytes(0xee, bytes) };
            region.protect(MprotectFlags::READ).expect("read-only");
            // SAFETY: the body is mapped and readable, and initialized above; the borrow ends with the line.
            let holds =
                |byte: u8| unsafe { std::slice::from_raw_parts(body, bytes) }.iter().all(|&b| b == byte);
            assert!(holds(0xee));
            region.wipe();
            assert!(holds(0));
        }
    }
}
