//! main_cf - from the text of a parameter file to values of every kind

use delivery_agent::manager::QmgrParams;
use delivery_agent::params::{SinkParams, SmtpParams, SmtpdParams, SubmitParams};
use master::limits;
use master::params::MasterParams;
use master::plan;
use worker_proto::diagnostic::Diagnostic;
use worker_proto::main_cf::MainCf;
use worker_proto::params::CommonParams;
use worker_proto::time_value::{self, Unit};

use super::complaints_are_sound;

const FILE: &str = "main.cf";
/// More than any value may have after its expansion.
const LONGEST: usize = 8 << 20;

/// Reading is deterministic, complaints point into the file, values are bounded, and what is written
/// from limits and times is read as the same.
///
/// # Panics
/// One of these does not hold.
pub fn main_cf(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (mut main_cf, mut complaints) = MainCf::parse(FILE, &text);
    let (again, complaints_again) = MainCf::parse(FILE, &text);
    assert_eq!(complaints, complaints_again);
    let mut names: Vec<String> = main_cf.names().map(str::to_owned).collect();
    names.sort_unstable();
    for name in &names {
        let value = main_cf.value(name).map(|v| v.map(|v| v.text));
        assert_eq!(value, again.value(name).map(|v| v.map(|v| v.text)));
        match value {
            Ok(value) => value.iter().for_each(|value| value_is_sound(value)),
            Err(complaint) => complaints.push(complaint),
        }
    }
    complaints.extend(parameters(&mut main_cf));
    complaints_are_sound(FILE, &text, &complaints);
}

fn value_is_sound(value: &str) {
    assert!(value.len() < LONGEST, "a value of {} bytes", value.len());
    for unit in [Unit::Seconds, Unit::Minutes, Unit::Hours, Unit::Days, Unit::Weeks] {
        if let Ok(time) = time_value::parse(value, unit) {
            assert_eq!(time_value::parse(&time_value::format(time), Unit::Seconds), Ok(time));
        }
    }
}

/// Reads every table; what is wrong.
fn parameters(main_cf: &mut MainCf) -> Vec<Diagnostic> {
    let mut complaints = Vec::new();
    complaints.extend(CommonParams::read(main_cf).err().into_iter().flatten());
    complaints.extend(SubmitParams::read(main_cf).err().into_iter().flatten());
    complaints.extend(SmtpdParams::read(main_cf).err().into_iter().flatten());
    complaints.extend(QmgrParams::read(main_cf).err().into_iter().flatten());
    complaints.extend(SmtpParams::read(main_cf).err().into_iter().flatten());
    complaints.extend(SinkParams::read(main_cf).err().into_iter().flatten());
    match MasterParams::read(main_cf) {
        Ok(master) => environment_is_sound(&master.import_environment),
        Err(errors) => complaints.extend(errors),
    }
    match limits::read(main_cf, "smtp") {
        Ok(limits) => assert_eq!(limits::from_word(&limits::to_word(&limits)), Ok(limits)),
        Err(errors) => complaints.extend(errors),
    }
    complaints
}

/// A null byte in it would keep every worker from being started.
fn environment_is_sound(import: &str) {
    let pairs = plan::environment(import, &|_| Some("value".into()));
    let bytes = |text: &std::ffi::OsStr| text.as_encoded_bytes().to_vec();
    for (name, value) in &pairs {
        assert!(!name.contains('\0') && !bytes(value).contains(&0), "{import:?}");
        assert!(!name.contains('='), "{import:?}");
    }
    let mut names: Vec<_> = pairs.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "each variable once: {import:?}");
}
