// Package e2e drives the real programs with clients that nobody here wrote.
//
// TestMain builds cmd once. Each client's suite runs against a stack: one `attestry up` in a new directory, or a
// site (newSite) of tlog servers, ca and the files of tuf-publisher behind one URL. The client is a subprocess with
// an empty home directory. Clients are looked up where scripts/clients installs them; one that is missing skips its
// suite, or fails it when CI=true. ATTESTRY_LONG=1, which scripts/test --long sets, crashes servers hundreds of times
// instead of a few, and has all clients run on all backends of the logs.
package e2e
