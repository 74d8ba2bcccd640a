update orders set note = initcaps(note);
