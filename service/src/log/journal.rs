//! Lines as the journal wants them: the priority in front (sd-daemon(3)), and no time of their own.

use std::fmt::{self, Write as _};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Priority of what ends a program.
pub(super) const ERROR: &str = "<3>";

/// The format of an event as one line of the journal.
pub(super) struct JournalLines;

impl<S, N> FormatEvent<S, N> for JournalLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        let metadata = event.metadata();
        let priority = priority(*metadata.level());
        let text = on_one_line(&text);
        writeln!(writer, "{priority}{}: {text}", metadata.target())
    }
}

/// The journal's priority of a level (syslog(3)).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => ERROR,
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Whatever a field holds, it begins no line of its own, which could have any priority.
pub(super) fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && letter != '\t' {
            let _ = write!(line, "{}", letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Sheet(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sheet {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Sheet {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_line_has_its_priority_and_no_field_begins_another_one() {
        let sheet = Sheet::default();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(sheet.clone())
            .with_ansi(false)
            .event_format(JournalLines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            tracing::error!("it ends");
            tracing::warn!(reason = "full", "the disk");
            tracing::info!(peer = %"n1\n<0>forged", "path");
            tracing::debug!("why");
        });
        let text = String::from_utf8(sheet.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        let starts = ["<3>", "<4>", "<6>", "<7>"];
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
        }
        assert!(lines[1].contains("the disk") && lines[1].contains("full"));
    }
}
