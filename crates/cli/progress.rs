//! A progress bar on stderr, where a person sees it.

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

/// The bar of one long job, counted in bytes; made at the first report, so that a short job shows none.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    wanted: bool,
    doing: &'static str,
}

impl Progress {
    /// Progress of what is being done, in a word or two.
    pub(crate) fn new(doing: &'static str, output: &Output) -> Self {
        Self { bar: None, wanted: output.shows_progress(), doing }
    }

    /// `done` of `total` bytes are done.
    pub(crate) fn report(&mut self, done: u64, total: u64) {
        if !self.wanted {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style =
                ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                    .expect("the template is a constant and a test draws it");
            ProgressBar::new(total).with_style(style).with_message(self.doing)
        });
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_can_be_drawn() {
        let mut progress = Progress { bar: None, wanted: true, doing: "erasing" };
        progress.report(1, 2);
        assert_eq!(progress.bar.as_ref().map(|bar| (bar.position(), bar.length())), Some((1, Some(2))));
    }
}
