//! Blocks and index pages in the store: written under their hash, checked against it at every read.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _};
use sealblk_record::SnapshotId;

use crate::cache::PageCache;
use crate::error::{Fault, Part, SnapshotError, store as store_error};
use crate::geometry::{BLOCK_BYTES, ROOT_LEVEL};
use crate::hash::ContentHash;
use crate::names;
use crate::page::{MAX_PAGE_BYTES, Page, Place, Reference};

/// The place of every root page.
pub(crate) const ROOT: Place = Place { level: ROOT_LEVEL, position: 0 };

/// The blocks and pages of a repository.
#[derive(Debug)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    cache: PageCache,
}

impl Objects {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, cache: PageCache::new() }
    }

    /// The page at `place` of snapshot `of`.
    pub(crate) async fn page(
        &self,
        of: SnapshotId,
        place: Place,
        reference: &Reference,
    ) -> Result<Arc<Page>, SnapshotError> {
        if let Some(page) = self.cache.get(place, reference) {
            return Ok(page);
        }
        let page = Arc::new(self.page_from_store(of, place, reference).await?);
        self.cache.insert(place, *reference, Arc::clone(&page));
        Ok(page)
    }

    /// As [`page`](Self::page), from the store in any case.
    pub(crate) async fn page_from_store(
        &self,
        of: SnapshotId,
        place: Place,
        reference: &Reference,
    ) -> Result<Page, SnapshotError> {
        let object = names::page(place, reference);
        let part = Part::Page { level: place.level, position: place.position };
        let damaged =
            |fault| SnapshotError::Damaged { snapshot: of, part, object: object.to_string(), fault };
        let bytes = self.content(&object, reference, MAX_PAGE_BYTES).await?.map_err(damaged)?;
        Page::decode(place, &bytes).map_err(|reason| damaged(Fault::Damaged(reason)))
    }

    /// Writes a page that the making of `generation` needs.
    pub(crate) async fn put_page(
        &self,
        generation: SnapshotId,
        place: Place,
        page: Page,
    ) -> Result<Reference, SnapshotError> {
        let bytes = page.encode();
        let reference = Reference { generation, hash: ContentHash::of(&bytes) };
        self.put(&names::page(place, &reference), bytes.into()).await?;
        self.cache.insert(place, reference, Arc::new(page));
        Ok(reference)
    }

    /// Block `index` of snapshot `of`, which has `length` bytes.
    pub(crate) async fn block(
        &self,
        of: SnapshotId,
        index: u64,
        length: u64,
        reference: &Reference,
    ) -> Result<Bytes, SnapshotError> {
        let object = names::block(index, reference);
        let damaged = |fault| SnapshotError::Damaged {
            snapshot: of,
            part: Part::Block(index),
            object: object.to_string(),
            fault,
        };
        let bytes = self.content(&object, reference, BLOCK_BYTES).await?.map_err(damaged)?;
        if bytes.len() as u64 != length {
            let reason = format!("it has {} bytes instead of {length}", bytes.len());
            return Err(damaged(Fault::Damaged(reason)));
        }
        Ok(bytes)
    }

    /// Writes a block whose hash is known.
    pub(crate) async fn put_block(
        &self,
        index: u64,
        reference: &Reference,
        content: Bytes,
    ) -> Result<(), SnapshotError> {
        self.put(&names::block(index, reference), content).await
    }

    /// The objects whose names begin with `prefix` and a slash.
    pub(crate) async fn list(&self, prefix: &Path) -> Result<Vec<object_store::ObjectMeta>, SnapshotError> {
        self.store.list(Some(prefix)).try_collect().await.map_err(store_error("list", prefix))
    }

    /// What follows `prefix` and a slash up to the next slash, where there is one.
    pub(crate) async fn prefixes(&self, prefix: &Path) -> Result<Vec<Path>, SnapshotError> {
        let listed = self.store.list_with_delimiter(Some(prefix)).await;
        Ok(listed.map_err(store_error("list", prefix))?.common_prefixes)
    }

    /// Removes objects; those that are gone already are no error. All are gone when it returns.
    pub(crate) async fn remove(&self, paths: Vec<Path>) -> Result<(), SnapshotError> {
        let Some(first) = paths.first().cloned() else { return Ok(()) };
        let named = futures_util::stream::iter(paths.into_iter().map(Ok));
        let mut removed = self.store.delete_stream(Box::pin(named));
        loop {
            match removed.try_next().await {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(store_error("remove", &first)(error)),
            }
        }
    }

    /// The content of an object, checked; the inner error is the object's.
    async fn content(
        &self,
        object: &Path,
        reference: &Reference,
        most: u64,
    ) -> Result<Result<Bytes, Fault>, SnapshotError> {
        let got = match self.store.get(object).await {
            Err(Error::NotFound { .. }) => return Ok(Err(Fault::Missing)),
            got => got.map_err(store_error("read", object))?,
        };
        if got.meta.size > most {
            return Ok(Err(Fault::Damaged(format!("it has {} bytes", got.meta.size))));
        }
        let bytes = got.bytes().await.map_err(store_error("read", object))?;
        let found = ContentHash::of(&bytes);
        if found != reference.hash {
            return Ok(Err(Fault::Damaged(format!("its content has the hash {found}"))));
        }
        Ok(Ok(bytes))
    }

    async fn put(&self, object: &Path, content: Bytes) -> Result<(), SnapshotError> {
        // Over whatever is there: it can only be the same content, or a torn one.
        self.store.put(object, content.into()).await.map(drop).map_err(store_error("write", object))
    }
}
