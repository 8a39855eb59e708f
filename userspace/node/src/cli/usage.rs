//! Faults of the command line in Docker's words.
//!
//! clap draws several lines with tips; scripts and people get one sentence and where to read on.

use std::error::Error as _;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use crate::cli::Cli;

/// Docker's exit code when the command line itself is wrong.
pub const EXIT_CODE: u8 = 125;

/// Prints help, version or the fault, and says how the process ends.
pub fn report(error: &Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nothing can be done about a closed stdout here.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(EXIT_CODE)
        }
        _ => {
            let command = command(std::env::args_os());
            eprintln!("{}\nSee '{command} --help'.", sentence(error, &command));
            ExitCode::from(EXIT_CODE)
        }
    }
}

fn sentence(error: &Error, command: &str) -> String {
    let context = |kind| error.get(kind).map(text).unwrap_or_default();
    let argument = context(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument => match argument.strip_prefix('-') {
            Some(rest) if rest.starts_with('-') => format!("unknown flag: {argument}"),
            Some(rest) => format!("unknown shorthand flag: '{rest}' in {argument}"),
            None => format!("\"{command}\" does not take the argument {argument:?}."),
        },
        ErrorKind::InvalidSubcommand => {
            format!(
                "{command}: '{}' is not a shoal command.",
                context(ContextKind::InvalidSubcommand)
            )
        }
        ErrorKind::MissingRequiredArgument => {
            let names = context(ContextKind::InvalidArg);
            format!("\"{command}\" requires at least 1 argument: {names}.")
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = context(ContextKind::InvalidValue);
            if value.is_empty() {
                return format!("flag needs an argument: {argument}");
            }
            let valid = context(ContextKind::ValidValue);
            let reason = match error.source() {
                Some(source) => source.to_string(),
                None if valid.is_empty() => "not a possible value".to_owned(),
                None => format!("use one of {valid}"),
            };
            format!("invalid argument {value:?} for \"{}\": {reason}", flag(&argument))
        }
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

/// `--publish <PORT>...` as the flag that was typed.
fn flag(argument: &str) -> &str {
    if argument.starts_with('-') {
        argument.split([' ', '=', '[']).next().unwrap_or(argument)
    } else {
        argument
    }
}

fn text(value: &ContextValue) -> String {
    match value {
        ContextValue::String(text) => text.clone(),
        ContextValue::Strings(texts) => texts.join(", "),
        other => other.to_string(),
    }
}

/// The verb that was typed, as far as it is one: `shoal service create`.
fn command(arguments: impl IntoIterator<Item = OsString>) -> String {
    let tree = Cli::command();
    let (mut verb, mut words) = (&tree, "shoal".to_owned());
    for argument in arguments.into_iter().skip(1) {
        let Some(next) = argument.to_str().and_then(|word| verb.find_subcommand(word)) else {
            continue;
        };
        verb = next;
        words = format!("{words} {}", verb.get_name());
        if verb.get_subcommands().next().is_none() {
            break;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn check(arguments: &[&str], expected: &str) {
        let arguments: Vec<OsString> = ["shoal"].iter().chain(arguments).map(Into::into).collect();
        let Err(error) = Cli::try_parse_from(&arguments) else { panic!("accepted") };
        assert_eq!(sentence(&error, &command(arguments)), expected);
    }

    #[test]
    fn an_unknown_flag_is_named_as_docker_names_it() {
        check(&["service", "create", "--nope", "rootfs:/"], "unknown flag: --nope");
        check(&["service", "ls", "-x"], "unknown shorthand flag: 'x' in -x");
        check(&["service", "ls", "y"], "\"shoal service ls\" does not take the argument \"y\".");
    }

    #[test]
    fn a_value_that_does_not_parse_says_which_and_why() {
        check(
            &["service", "create", "-p", "8080:x", "rootfs:/"],
            "invalid argument \"8080:x\" for \"--publish\": invalid target port 'x': \
             use a number from 1 to 65535",
        );
        check(
            &["service", "create", "--replicas", "many", "rootfs:/"],
            "invalid argument \"many\" for \"--replicas\": invalid digit found in string",
        );
        check(&["service", "create", "--name"], "flag needs an argument: --name <NAME>");
    }

    #[test]
    fn a_missing_argument_names_the_command() {
        check(
            &["service", "create"],
            "\"shoal service create\" requires at least 1 argument: <IMAGE>....",
        );
    }

    #[test]
    fn an_unknown_verb_is_no_command() {
        check(&["frobnicate"], "shoal: 'frobnicate' is not a shoal command.");
    }
}
