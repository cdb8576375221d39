//! How a server tells its connections, each on a thread of its own, to come to an end.

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Phase {
    Running,
    Draining,
    Closing,
}

/// The side that ends connections.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Phase>);

/// A connection's view of it.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Receiver<Phase>);

impl Default for Stopper {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }
}

impl Stopper {
    /// A signal that follows this stopper. When the stopper is dropped, its connections drain.
    pub fn signal(&self) -> StopSignal {
        StopSignal(self.0.subscribe())
    }

    /// Answer what was accepted, then close.
    pub fn drain(&self) {
        self.0.send_replace(Phase::Draining);
    }

    /// Close now.
    pub fn close(&self) {
        self.0.send_replace(Phase::Closing);
    }
}

impl StopSignal {
    /// Returns when the connection should drain, at once if that was said already.
    pub async fn draining(&mut self) {
        // An error is a stopper that is gone: nobody could stop the connection later.
        let _ = self.0.wait_for(|phase| *phase >= Phase::Draining).await;
    }

    /// Returns when the connection should close at once.
    pub async fn closing(&mut self) {
        if self.0.wait_for(|phase| *phase == Phase::Closing).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
