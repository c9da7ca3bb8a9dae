package migrations

// LockID is the advisory lock that migrations of one schema take.
var LockID = lockID
