// Package e2e drives the real attestry binary with clients that nobody here wrote.
//
// TestMain builds cmd/attestry once. Each client's suite starts one `attestry up` in a new
// directory and runs the client as a subprocess with an empty home directory. Clients are
// looked up where scripts/clients installs them; one that is missing skips its suite, or fails
// it when CI=true. ATTESTRY_LONG=1, which scripts/test --long sets, crashes the server 50 times
// instead of 3.
package e2e
