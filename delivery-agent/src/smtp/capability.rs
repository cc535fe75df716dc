//! capability - what a server offers in its answer to EHLO

use super::reply::Reply;

/// Extensions of a server; unknown ones are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Mechanisms of AUTH, in upper case.
    pub auth: Vec<String>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced: bool,
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// SIZE (RFC 1870): the most bytes of a message, 0 when no limit is told. None: not offered.
    pub size: Option<u64>,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
}

impl Capabilities {
    /// Reads an answer to EHLO. Its first line is the server's name.
    #[must_use]
    pub fn of(reply: &Reply) -> Self {
        let mut capabilities = Self::default();
        for line in reply.lines().skip(1) {
            capabilities.line(&String::from_utf8_lossy(line).to_ascii_uppercase());
        }
        capabilities
    }

    fn line(&mut self, line: &str) {
        let mut words = line.split([' ', '\t']).filter(|w| !w.is_empty());
        let first = words.next().unwrap_or_default();
        // Some old servers write AUTH=LOGIN and SIZE=1000.
        let (keyword, glued) = first.split_once('=').unwrap_or((first, ""));
        let mut values = (!glued.is_empty()).then_some(glued).into_iter().chain(words);
        match keyword {
            "8BITMIME" => self.eight_bit = true,
            "AUTH" => {
                for mechanism in values {
                    if !self.auth.iter().any(|m| m == mechanism) {
                        self.auth.push(mechanism.to_owned());
                    }
                }
            }
            "DSN" => self.dsn = true,
            "ENHANCEDSTATUSCODES" => self.enhanced = true,
            "PIPELINING" => self.pipelining = true,
            "SIZE" => self.size = Some(values.next().and_then(|v| v.parse().ok()).unwrap_or(0)),
            "SMTPUTF8" => self.smtputf8 = true,
            "STARTTLS" => self.starttls = true,
            _ => {}
        }
    }

    /// Whether a message of this many bytes may be declared to the server.
    #[must_use]
    pub fn takes_size(&self, bytes: u64) -> bool {
        self.size.is_none_or(|limit| limit == 0 || bytes <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::ReplyReader;
    use super::*;

    fn of(text: &str) -> Capabilities {
        let (_, reply) = ReplyReader::default().feed(text.as_bytes()).unwrap();
        Capabilities::of(&reply.unwrap())
    }

    #[test]
    fn s7_keywords_in_any_case_and_old_forms() {
        let c = of(
            "250-pipelining.example\r\n250-size 1000\r\n250-8BITMIME\r\n250-AUTH PLAIN login\r\n\
             250-AUTH=LOGIN XOAUTH2\r\n250-X-OWN\r\n250-DSN\r\n250-STARTTLS\r\n\
             250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n",
        );
        assert!(!c.pipelining, "the first line is a name");
        assert_eq!(c.size, Some(1000));
        assert_eq!(c.auth, ["PLAIN", "LOGIN", "XOAUTH2"]);
        assert!(c.eight_bit && c.dsn && c.starttls && c.enhanced && c.smtputf8);
        assert!(c.takes_size(1000) && !c.takes_size(1001));
    }

    #[test]
    fn s7_a_size_without_a_number_is_no_limit() {
        for text in ["250-x\r\n250 SIZE\r\n", "250-x\r\n250 SIZE 0\r\n", "250 x\r\n"] {
            assert!(of(text).takes_size(u64::MAX), "{text:?}");
        }
    }
}
