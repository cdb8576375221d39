//! Objects that nobody refers to: what a making that was taken up again left of its earlier attempt.

use object_store::path::Path;

use crate::error::SnapshotError;
use crate::geometry::leaf_of;
use crate::names::{self, BLOCKS, PAGES};
use crate::record::SnapshotRecord;
use crate::repository::Repository;

impl Repository {
    /// Removes what the making of a snapshot wrote and the completed snapshot does not refer to. Nobody else can refer to
    /// it: others take over from the completed index.
    pub(crate) async fn remove_strays(&self, completed: &SnapshotRecord) -> Result<(), SnapshotError> {
        let tree = self.tree(completed);
        let mut strays: Vec<Path> = Vec::new();
        for object in self.objects.list(&names::generation(PAGES, completed.snapshot_id)).await? {
            let Some((place, reference)) = names::parse_page(&object.location) else { continue };
            if tree.page(place).await?.map(|(used, _)| used) != Some(reference) {
                strays.push(object.location);
            }
        }
        self.objects.remove(std::mem::take(&mut strays)).await?;
        let leaves = self.objects.prefixes(&names::generation(BLOCKS, completed.snapshot_id)).await?;
        for leaf in leaves.iter().filter_map(names::parse_leaf) {
            let page = tree.leaf(leaf).await?;
            for object in self.objects.list(&names::leaf_blocks(completed.snapshot_id, leaf)).await? {
                let Some((index, reference)) = names::parse_block(&object.location) else { continue };
                let used = page.as_ref().and_then(|(_, page)| page.entry(leaf_of(index).1));
                if used.map(|entry| entry.reference) != Some(reference) {
                    strays.push(object.location);
                }
            }
            self.objects.remove(std::mem::take(&mut strays)).await?;
        }
        Ok(())
    }
}
