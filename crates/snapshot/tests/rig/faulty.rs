//! An object store that fails as told: after some number of requests, at one of them, for a while, or by tearing what is
//! written.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A store over another one that counts requests and fails those from `from` to `to` (counted from 0).
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    requests: AtomicU64,
    from: AtomicU64,
    to: AtomicU64,
    /// Others get their turn before a request, up to so many times, as a generator with this seed says.
    turns: Option<AtomicU64>,
    /// A failing write is done all the same: only its reply is lost.
    lose_reply: bool,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) puts: AtomicU64,
}

impl Faulty {
    /// A store that does not fail yet.
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Self::failing(inner, u64::MAX..u64::MAX, false)
    }

    pub(crate) fn failing(
        inner: Arc<dyn ObjectStore>,
        range: std::ops::Range<u64>,
        lose_reply: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            requests: AtomicU64::new(0),
            from: AtomicU64::new(range.start),
            to: AtomicU64::new(range.end),
            turns: None,
            lose_reply,
            written_bytes: AtomicU64::new(0),
            puts: AtomicU64::new(0),
        })
    }

    /// A store that never fails, and between whose requests others come in an order that depends on the seed.
    pub(crate) fn interleaving(inner: Arc<dyn ObjectStore>, seed: u64) -> Arc<Self> {
        let store = Self::new(inner);
        let mut store = Arc::into_inner(store).expect("nobody else has it");
        store.turns = Some(AtomicU64::new(seed | 1));
        Arc::new(store)
    }

    async fn give_turns(&self) {
        let Some(state) = &self.turns else { return };
        // Xorshift: any generator does.
        let mut random = state.load(Ordering::Relaxed);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        state.store(random, Ordering::Relaxed);
        for _ in 0..random % 8 {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn fails(&self) -> bool {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        (self.from.load(Ordering::Relaxed)..self.to.load(Ordering::Relaxed)).contains(&number)
    }

    fn check(&self) -> Result<()> {
        if self.fails() { Err(lost()) } else { Ok(()) }
    }
}

fn lost() -> Error {
    Error::Generic { store: "faulty", source: "the store is lost".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.give_turns().await;
        let fails = self.fails();
        if fails && !self.lose_reply {
            return Err(lost());
        }
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(payload.content_length() as u64, Ordering::Relaxed);
        let put = self.inner.put_opts(location, payload, options).await;
        if fails { Err(lost()) } else { put }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        unreachable!("nothing here is large enough")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.give_turns().await;
        self.check()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if !self.fails() {
            return self.inner.delete_stream(locations);
        }
        if self.lose_reply {
            let removed = self.inner.delete_stream(locations);
            return removed.then(async |_| Err(lost())).boxed();
        }
        futures_util::stream::once(async { Err(lost()) }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.check() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.give_turns().await;
        self.check()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unreachable!("a snapshot is made of references, not of copies")
    }
}
