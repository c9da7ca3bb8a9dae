// Package docs has no code. Its tests hold the documentation to the code.
package docs
