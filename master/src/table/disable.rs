//! disable - `master_service_disable`: services that are not run (C04)

use worker_proto::abi::Transport;

/// The items of the list, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disabled(Vec<Item>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    disable: bool,
    name: Option<String>,
    transport: String,
}

impl Disabled {
    /// Reads the words of the parameter. An item is `type` or `name/type` (or the older `name.type`),
    /// with any number of `!` before it.
    #[must_use]
    pub fn new(words: &[String]) -> Self {
        Self(words.iter().map(|word| item(word)).collect())
    }

    /// Whether a service is not to be run: the first item that matches says. The transport is the
    /// word in the table, which need not be one.
    #[must_use]
    pub fn matches(&self, name: &str, transport: &str) -> bool {
        let matching = self.0.iter().find(|item| {
            item.transport.eq_ignore_ascii_case(transport)
                && item.name.as_ref().is_none_or(|n| n.eq_ignore_ascii_case(name))
        });
        matching.is_some_and(|item| item.disable)
    }
}

fn item(word: &str) -> Item {
    let body = word.trim_start_matches('!');
    let disable = (word.len() - body.len()).is_multiple_of(2);
    let split = body.rsplit_once('/').or_else(|| {
        let (name, transport) = body.rsplit_once('.')?;
        transport.parse::<Transport>().ok().map(|_| (name, transport))
    });
    let (name, transport) =
        split.map_or((None, body), |(name, transport)| (Some(name.to_owned()), transport));
    Item { disable, name, transport: transport.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c04_first_match_wins() {
        let words = ["!smtp/inet", "inet", "Foo/UNIX", "bar.fifo", "!!pass"].map(str::to_owned);
        let disabled = Disabled::new(&words);
        assert!(!disabled.matches("smtp", "inet"));
        assert!(disabled.matches("25", "inet"));
        assert!(disabled.matches("foo", "unix"));
        assert!(!disabled.matches("other", "unix"));
        assert!(disabled.matches("bar", "fifo"));
        assert!(disabled.matches("x", "PASS"));
        assert!(!Disabled::default().matches("x", "pass"));
    }
}
