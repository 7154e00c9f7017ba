//! Memory straight from the system, for buffers that are large and mostly empty.
//!
//! An allocator clears what it hands out a second time, and so makes all of it resident: a megabyte for each tunnel that was
//! opened after another. Pages of the system are clear by themselves, and none is there before somebody writes to it.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Zeroed bytes. Dropped: given back to the system.
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// `len` bytes, more than none.
    ///
    /// # Errors
    /// The system has no room.
    #[expect(unsafe_code, reason = "std has no way to ask for pages")]
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice, without a file: it touches no other memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => Ok(Self { start, len }),
            Some(_) | None => Err(io::Error::last_os_error()),
        }
    }
}

#[expect(unsafe_code, reason = "the mapping is this value's alone, as memory of a Box is")]
// SAFETY: nothing else points into the mapping, and it belongs to no thread.
unsafe impl Send for Pages {}

#[expect(unsafe_code, reason = "the mapping is this value's alone, as memory of a Box is")]
// SAFETY: a shared reference only gives shared references to the bytes.
unsafe impl Sync for Pages {}

impl Deref for Pages {
    type Target = [u8];

    #[expect(unsafe_code, reason = "a mapping is no slice by itself")]
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` readable bytes, zero or written, are mapped at `start` until this value is dropped, and its lifetime
        // bounds that of the slice.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    #[expect(unsafe_code, reason = "a mapping is no slice by itself")]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, writable, and the only way to it is this value, which is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    #[expect(unsafe_code, reason = "what was mapped is to be unmapped")]
    fn drop(&mut self) {
        // SAFETY: exactly what `new` has mapped, once, and no slice of it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_clear_hold_what_is_written_and_become_resident_only_then() {
        const LEN: usize = 64 << 20;
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let mut pages = Pages::new(LEN).unwrap();
        assert_eq!((pages.len(), pages[LEN - 1]), (LEN, 0));
        pages[LEN / 2] = 7;
        assert_eq!(pages[LEN / 2], 7);
        assert!(resident() < before + LEN / 2);
        assert!(Pages::new(usize::MAX / 2).is_err());
    }
}
