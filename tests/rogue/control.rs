//! The strings of the puppet: a local socket that takes one JSON order per line and answers each with
//! one JSON line, which is printed too.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Whoever takes orders.
pub(crate) trait Puppet: Send + Sync + 'static {
    /// What can be ordered.
    type Order: DeserializeOwned + Send;

    /// Does it.
    fn obey(&self, order: Self::Order) -> impl Future<Output = Result<Value>> + Send;
}

/// Takes orders at `path` until the process ends.
pub(crate) async fn serve<P: Puppet>(puppet: Arc<P>, path: &Path) -> Result<()> {
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot open the control socket {}", path.display()))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let puppet = Arc::clone(&puppet);
        tokio::spawn(async move {
            // Whoever gave the orders has gone away; others may come.
            let _ = converse(&*puppet, stream).await;
        });
    }
}

async fn converse<P: Puppet>(puppet: &P, stream: UnixStream) -> Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::new(reading).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(order) => puppet.obey(order).await,
            Err(error) => Err(error.into()),
        };
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        say(&json!({ "order": line, "answer": answer }));
        writing.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

/// Prints one line for whoever reads the log.
#[allow(clippy::print_stdout, reason = "the log of a puppet is its output")]
pub(crate) fn say(value: &Value) {
    println!("{value}");
}
