//! What is held back is done like the rest: it completes, survives its owner, and is done before the ring goes away.

use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::LocalSet;

use super::*;

const BYTES: usize = 4096;

/// Runs `body` with a ring on `file` that gives the kernel one transfer at a time.
fn on_a_ring(file: &File, body: impl AsyncFnOnce(Ring)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let file = Arc::new(file.try_clone().expect("a descriptor"));
        let ring = Ring::new(file, 64, 512, Arc::default()).expect("a ring");
        ring.core.state.borrow_mut().pace = Pace::limited_to(1);
        body(ring).await;
    });
}

fn filled(with: u8) -> Buffer {
    let mut buffer = Buffer::new(BYTES);
    buffer.fill(with);
    buffer
}

/// Whether the file is what 48 writes leave, each of one number.
fn assert_written(file: &File) {
    let mut bytes = Vec::new();
    let mut file = file;
    io::Seek::rewind(&mut file).expect("the beginning");
    io::Read::read_to_end(&mut file, &mut bytes).expect("the file");
    assert_eq!(bytes.len(), 48 * BYTES);
    for (number, part) in (0..).zip(bytes.chunks(BYTES)) {
        assert!(part.iter().all(|byte| *byte == number), "write {number}");
    }
}

#[test]
fn transfers_that_are_held_back_complete() {
    let file = tempfile::tempfile().expect("a file");
    on_a_ring(&file, async |ring| {
        let ring = Rc::new(ring);
        let writes: Vec<_> = (0..48)
            .map(|number| {
                let ring = Rc::clone(&ring);
                tokio::task::spawn_local(async move {
                    let at = u64::from(number) * BYTES as u64;
                    ring.write(at, filled(number), 0, false).await.0.expect("written");
                    let (outcome, buffer) = ring.read(at, filled(0xff), 0).await;
                    outcome.expect("read");
                    assert!(buffer.iter().all(|byte| *byte == number));
                })
            })
            .collect();
        for write in writes {
            write.await.expect("a request");
        }
    });
    assert_written(&file);
}

#[test]
fn transfers_that_are_held_back_outlive_their_owners_and_not_the_ring() {
    let file = tempfile::tempfile().expect("a file");
    on_a_ring(&file, async |ring| {
        let writes =
            (0..48).map(|number| ring.write(u64::from(number) * BYTES as u64, filled(number), 0, false));
        let mut writes: Vec<_> = writes.map(Box::pin).collect();
        poll_fn(|context| {
            assert!(writes.iter_mut().all(|write| write.as_mut().poll(context).is_pending()));
            Poll::Ready(())
        })
        .await;
        assert_eq!(ring.core.state.borrow().in_flight, 1);
        drop(writes);
        drop(ring);
        // The ring's drop has waited for all of them.
        assert_written(&file);
    });
}

#[test]
fn a_sync_is_not_held_back() {
    let file = tempfile::tempfile().expect("a file");
    on_a_ring(&file, async |ring| {
        let mut write = Box::pin(ring.write(0, filled(7), 0, false));
        let mut second = Box::pin(ring.write(BYTES as u64, filled(7), 0, false));
        let mut sync = Box::pin(ring.sync());
        poll_fn(|context| {
            let begun =
                [write.as_mut().poll(context).is_pending(), second.as_mut().poll(context).is_pending()];
            assert_eq!((begun, sync.as_mut().poll(context).is_pending()), ([true; 2], true));
            Poll::Ready(())
        })
        .await;
        assert_eq!(ring.core.state.borrow().in_flight, 2, "a write and the sync");
        sync.await.expect("synced");
        write.await.0.expect("written");
        second.await.0.expect("written");
    });
}
