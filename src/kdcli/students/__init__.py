"""Students made from a teacher: at random in its form, or cut out of it."""
