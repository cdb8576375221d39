//! One value of any type in locked pages.

use std::fmt;

use crate::KeyMemError;
use crate::page::{Backing, Page, backing};

/// One value (round keys, say) in locked pages; dropped and then wiped on drop.
///
/// `Send` and `Sync` as `T` is; not `Clone`, not `PartialEq`, `Debug` shows nothing. Only the bytes of `T`
/// itself are in the pages: what it points to (a `Vec`, a `Box`) is not, so a `T` that owns heap memory has no
/// place here. The pages are read-only while the value lives, so neither has a `T` that changes itself behind a
/// shared reference (`Cell`, atomics, locks): its first write would be a fault that ends the process. In a
/// child made by `fork` without `exec` the pages do not exist: [`expose`](Self::expose) there is a fault,
/// dropping does nothing.
pub struct Locked<T>(Page<T>);

impl<T> Locked<T> {
    /// Moves what `make` returns into locked pages, and scrubs the stack that `make` used.
    ///
    /// The value is on the stack between `make` and the page; that slot is wiped, then
    /// [`SCRUBBED_STACK_BYTES`](crate::SCRUBBED_STACK_BYTES) of stack below. [`scrub_stack`](crate::scrub_stack)
    /// says what that covers. Values that `make` captured belong to the caller and are not touched, and a
    /// `make` that panics leaves its stack as it is.
    ///
    /// # Errors
    /// There is no lockable memory; `make` was then not called, except if the pages could not be made
    /// read-only: then the value was dropped and wiped again.
    pub fn new(make: impl FnOnce() -> T) -> Result<Self, KeyMemError> {
        Self::new_on(backing(), make)
    }

    /// As [`new`](Self::new), in the kind of memory asked for instead of the best there is: for tests.
    ///
    /// # Errors
    /// As [`new`](Self::new); also that the kernel does not offer this kind.
    pub fn new_on(backing: Backing, make: impl FnOnce() -> T) -> Result<Self, KeyMemError> {
        Page::place(backing, make).map(Self)
    }

    /// The value that already is in `page`.
    pub(crate) fn from_page(page: Page<T>) -> Self {
        Self(page)
    }

    /// Reads the value in the scope of `read`.
    ///
    /// What `read` copies out of it is no longer protected.
    pub fn expose<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(self.0.value())
    }

    /// Which kind of memory this value is in.
    pub fn backing(&self) -> Backing {
        self.0.backing()
    }
}

impl<T> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn value_keeps_its_alignment() {
        #[repr(align(64))]
        struct RoundKeys([u8; 100]);
        let keys = Locked::new(|| RoundKeys([9; 100])).expect("locked memory");
        keys.expose(|keys| {
            assert_eq!(std::ptr::from_ref(keys).align_offset(64), 0);
            assert_eq!(keys.0, [9; 100]);
        });
    }

    #[test]
    fn value_is_dropped_once_while_it_can_still_write_to_itself() {
        struct WipesItself<'a>(u32, &'a AtomicU32);
        impl Drop for WipesItself<'_> {
            fn drop(&mut self) {
                self.1.fetch_add(self.0, Ordering::Relaxed);
                self.0 = 0;
            }
        }
        let drops = AtomicU32::new(0);
        let locked = Locked::new(|| WipesItself(1, &drops)).expect("locked memory");
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        drop(locked);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn debug_does_not_show_the_value() {
        let locked = Locked::new(|| "the value").expect("locked memory");
        assert_eq!(format!("{locked:?}"), "Locked(redacted)");
    }

    #[test]
    fn is_send_and_sync_when_the_value_is() {
        fn shareable<T: Send + Sync>() {}
        shareable::<Locked<[u8; 480]>>();
        shareable::<crate::DataKey>();
    }
}
