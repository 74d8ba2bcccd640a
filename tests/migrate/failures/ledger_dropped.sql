drop schema migrate cascade;
