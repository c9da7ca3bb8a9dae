// Package dblock gives out locks that know when they are lost.
package dblock
