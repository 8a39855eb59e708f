//! The datapath's cases on the library.

use shoal_tests::testbed::{Hook, cases, check, host};

fn check_hook(hook: Hook) {
    let cases: Vec<_> = cases::all().into_iter().filter(|case| case.hook == hook).collect();
    assert!(!cases.is_empty());
    check(&cases, host::run);
}

#[test]
fn ingress_xdp_decides_as_its_cases_say() {
    check_hook(Hook::IngressXdp);
}

#[test]
fn ingress_tc_decides_as_its_cases_say() {
    check_hook(Hook::IngressTc);
}

#[test]
fn mesh_tc_decides_as_its_cases_say() {
    check_hook(Hook::MeshTc);
}

#[test]
fn task_tc_decides_as_its_cases_say() {
    check_hook(Hook::TaskTc);
}

#[test]
fn every_case_has_a_name_of_its_own_in_its_hook() {
    let cases = cases::all();
    let mut names: Vec<_> = cases.iter().map(|case| (case.hook as u8, case.name)).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len());
}
